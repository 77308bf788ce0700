"""`python3 -m helpers.environment`: before anything is installed, on a bare and on an old Python."""

import __future__

import ast
import json
import os
import shutil
import subprocess
import sys

import pytest

import helpers.environment.__main__ as bare
from helpers.environment.diagnosis import RULES
from helpers.environment.facts import UnreadError
from helpers.paths import ROOT

FILES = [
    ROOT / "helpers" / "__init__.py",
    ROOT / "helpers" / "display.py",
    ROOT / "helpers" / "paths.py",
    *sorted((ROOT / "helpers" / "environment").glob("*.py")),
]
# what Python 3.10 does not have yet; "" is the module itself
NEW_IN_311 = {
    "tomllib": {""},
    "asyncio": {"TaskGroup", "Runner", "timeout", "Barrier"},
    "builtins": {"ExceptionGroup", "BaseExceptionGroup"},
    "calendar": {"Month", "Day"},
    "contextlib": {"chdir"},
    "copy": {"replace"},
    "datetime": {"UTC"},
    "enum": {"StrEnum", "ReprEnum", "EnumCheck", "verify", "member", "nonmember", "global_enum"},
    "hashlib": {"file_digest"},
    "inspect": {"getmembers_static"},
    "itertools": {"batched"},
    "logging": {"getLevelNamesMapping"},
    "math": {"cbrt", "exp2", "sumprod"},
    "operator": {"call"},
    "pathlib": {"UnsupportedOperation"},
    "sys": {"exception", "monitoring"},
    "types": {"get_original_bases", "CapsuleType"},
    "typing": set(
        "Self Never LiteralString Required NotRequired Unpack TypeVarTuple assert_never assert_type reveal_type "
        "override dataclass_transform get_overloads TypeAliasType ReadOnly TypeIs".split()
    ),
}
LATER = {
    "torch",
    "psutil",
    "safetensors",
    "tqdm",
    "ipywidgets",
    "IPython",
    "pynvml",
    "jupyter_core",
    "click",
}  # imported where a check needs it
AS_MAIN = """
import runpy, sys
sys.path.insert(0, {root!r})
sys.argv = ["doctor", *{arguments!r}]
code = None
try:
    runpy.run_module("helpers.environment", run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
own = {{"helpers", "__main__", "__mp_main__"}}
known = sys.stdlib_module_names | own
print("@@", code, sorted({{name.partition(".")[0] for name in sys.modules}} - known), file=sys.stderr)
"""


def run(*arguments, flags=("-S", "-E"), python=sys.executable, env=None):
    """Run the doctor as a program; return its exit code, output, third-party imports and error output."""
    source = AS_MAIN.format(root=str(ROOT), arguments=arguments)
    command = [python, "-X", "utf8", *flags, "-c", source]  # a Windows code page would print ? for a mark
    done = subprocess.run(
        command, env=env, cwd=ROOT / "tests", capture_output=True, encoding="utf-8", timeout=100, check=False
    )
    stderr, mark, last = done.stderr.rpartition("@@")
    assert mark, done.stderr
    code, _, modules = last.strip().partition(" ")
    return int(code), done.stdout, ast.literal_eval(modules), stderr


def imports(tree):
    """Return (module, name or '', at top level) of every import."""
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name, id(node) in top) for alias in node.names)


class TestOldPython:
    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
    def test_the_source_parses_as_python_3_10(self, path):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
    def test_only_the_standard_library_of_3_10_is_imported(self, path):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for module, name, is_top in imports(tree):
            package = module.partition(".")[0]
            assert package in sys.stdlib_module_names | {"helpers"} | LATER, module
            assert package not in LATER - {"click"} or not is_top, f"{module} is imported before a check needs it"
            assert package != "click" or path.stem == "commands"
            assert name not in NEW_IN_311.get(module, ()), f"{module}.{name} is newer than 3.10"
            assert (
                package != "helpers"
                or module in ("helpers", "helpers.display", "helpers.paths")
                or module.startswith("helpers.environment")
            )

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
    def test_nothing_newer_than_3_10_is_used(self, path):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.attr not in NEW_IN_311.get(node.value.id, ()), f"{node.value.id}.{node.attr}"
            if isinstance(node, ast.Name):
                assert node.id not in NEW_IN_311["builtins"], node.id

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
    def test_annotations_that_an_old_python_cannot_evaluate_stay_unevaluated(self, path):
        source = path.read_text(encoding="utf-8")
        annotations = [
            node.annotation if isinstance(node, ast.arg | ast.AnnAssign) else node.returns
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.arg | ast.AnnAssign | ast.FunctionDef)
        ]
        unions = [
            part
            for annotation in annotations
            if annotation
            for part in ast.walk(annotation)
            if isinstance(part, ast.BinOp)
        ]
        flags = compile(source, path, "exec", dont_inherit=True).co_flags
        assert not unions or flags & __future__.annotations.compiler_flag

    def test_the_bare_doctor_does_not_import_the_course_commands(self):
        for path in FILES:
            imported = {module for module, _, _ in imports(ast.parse(path.read_text(encoding="utf-8")))}
            assert "helpers.environment.commands" not in imported

    @pytest.mark.parametrize("minor", [9, 10])
    def test_an_old_python_is_reported_as_too_old(self, minor):
        python = shutil.which(f"python3.{minor}")
        if python is None:
            pytest.skip(f"needs a python3.{minor} on PATH")
        query = [python, "-c", "import sys; print(sys.version_info[:2])"]
        if subprocess.run(query, capture_output=True, encoding="utf-8", check=False).stdout.strip() != f"(3, {minor})":
            pytest.skip(f"the python3.{minor} on PATH does not start")
        command = [python, "-S", "-E", "-m", "helpers.environment", "--quick", "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
        checks = {check["id"]: check for check in json.loads(done.stdout or "{}").get("checks", [])}
        assert (done.returncode, done.stderr, len(checks)) == (1, "", len(RULES))
        assert checks["python_version"]["status"] == "fail"
        assert checks["python_version"]["reading"].startswith(f"Python 3.{minor}.")
        assert not [check for check in checks.values() if "itself broke" in check["reading"]]


class TestBarePython:
    """With -S -E no installed package can be imported."""

    def test_the_doctor_runs(self):
        code, shown, others, stderr = run("--quick")
        assert (others, stderr) == ([], "")
        assert code == int("Not ready" in shown)
        assert sum("\n" + sign in "\n" + shown for sign in ("✓ ok", "✗ fail", "! warn")) >= 1
        assert "\x1b" not in shown  # a pipe

    def test_it_prints_json(self):
        code, shown, others, stderr = run("--quick", "--json")
        document = json.loads(shown)
        assert (others, stderr, len(document["checks"]), document["exit_code"]) == ([], "", len(RULES), code)
        assert not [check for check in document["checks"] if "itself broke" in check["reading"]]

    def test_it_recommends_a_wheel(self):
        code, shown, others, stderr = run("--wheel")
        assert (code, others, stderr) == (0, [], "")
        assert "pip:    " in shown
        assert "conda:  " in shown

    def test_the_recommended_wheel_can_be_json(self):
        code, shown, others, _ = run("--wheel", "--json")
        assert (code, others) == (0, [])
        assert list(json.loads(shown)) == ["tag", "pip_args", "pip", "conda", "reason"]


class TestQuick:
    @pytest.fixture
    def trap(self, stub, tmp_path):
        """Return the file that exists as soon as any process imports torch."""
        stub("torch/__init__.py", f"open({str(tmp_path / 'imported')!r}, 'w').close()\nraise ImportError('a trap')\n")
        stub("torch/version.py", "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
        return tmp_path / "imported"

    @pytest.mark.parametrize(
        "arguments",
        [["helpers", "doctor", "--quick"], ["helpers.environment", "--quick"], ["helpers.environment", "--wheel"]],
        ids=" ".join,
    )
    def test_no_process_imports_torch(self, trap, arguments):
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
        )
        assert done.stderr == ""
        assert not trap.exists()
        if "--quick" in arguments:
            assert "torch 2.13.0+cpu" in done.stdout  # read from its files

    def test_without_quick_the_child_imports_torch(self, trap):
        done = subprocess.run(
            [sys.executable, "-m", "helpers.environment"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
        )
        assert trap.exists()  # the trap works
        assert done.returncode == 1
        assert "torch cannot be imported: ImportError: a trap" in done.stdout


class TestMain:
    @pytest.fixture
    def doctor(self, monkeypatch):
        """Replace the diagnosis of this machine; return the options it was called with."""
        calls = []

        class Found:
            exit_code = 1

            def to_dict(self):
                return {"verdict": "x"}

            def table(self, *, color):
                return f"table, color={color}"

        monkeypatch.setattr(bare, "diagnose", lambda **options: calls.append(options) or Found())
        return calls

    def test_the_exit_code_comes_from_the_diagnosis(self, doctor, capsys):
        assert bare.main([]) == 1
        assert capsys.readouterr().out == "table, color=False\n"
        assert doctor == [{"quick": False}]

    @pytest.mark.parametrize(("value", "color"), [(None, True), ("", True), ("1", False)])
    def test_a_terminal_gets_colours_unless_no_color_is_set(self, doctor, capsys, monkeypatch, value, color):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.delenv("NO_COLOR", raising=False)
        if value is not None:
            monkeypatch.setenv("NO_COLOR", value)
        bare.main(["--quick"])
        assert capsys.readouterr().out == f"table, color={color}\n"
        assert doctor == [{"quick": True}]

    def test_an_unreadable_machine_gives_one_sentence(self, monkeypatch, capsys):
        def unread():
            raise UnreadError("OSError: stuck")

        monkeypatch.setattr(bare, "wheel_advice", unread)
        assert bare.main(["--wheel"]) == 1
        assert capsys.readouterr().err == "Error: the wheel for this machine is not known: OSError: stuck\n"

    def test_characters_missing_from_the_output_encoding_are_replaced(self):
        env = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(
            [sys.executable, "-m", "helpers.environment", "--quick"],
            cwd=ROOT,
            env=env,
            capture_output=True,
            check=False,
        )
        assert done.stderr == b""
        assert b"? ok " in done.stdout
