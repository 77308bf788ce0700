"""What holds the project together: pins that agree, imports that point one way, notebooks stored clean."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import distributions
from itertools import pairwise

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import helpers
from helpers.__main__ import main
from helpers.environment.diagnosis import RULES
from helpers.environment.requirements import PYTHONS
from helpers.environment.tasks import TASKS
from helpers.paths import NOTEBOOKS
from helpers.settings import DataSettings, EvaluationSettings, RunSettings, TrainingSettings

ROOT = NOTEBOOKS.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
REQUIREMENTS = [
    Requirement(text) for text in sum(PROJECT["optional-dependencies"].values(), list(PROJECT["dependencies"]))
]

# Every top-level package and module, lowest first: each row lists its imports, all of them above it in this list.
ROOMS = {
    "__init__": set(),
    "paths": set(),
    "display": set(),
    "environment": {"display", "paths"},
    "plots": {"display"},
    "schema": {"display"},
    "formats": {"display"},
    "files": {"display", "formats", "paths", "schema"},
    "settings": {"display", "files", "paths", "schema"},
    "exercises": {"display", "files", "settings"},
    "model": {"display", "paths", "settings"},
    "report": {"display", "files", "paths", "plots", "settings"},
    "course": {"display", "files", "paths", "report", "settings"},
    "data": {"display", "files", "model", "paths", "plots", "settings"},
    "training": {"data", "display", "environment", "files", "model", "paths", "settings"},
    "evaluation": {"data", "display", "files", "model", "settings", "training"},
    "troubleshooting": {"course", "data", "display", "environment", "model", "paths", "settings", "training"},
    "widgets": {"data", "display", "evaluation", "files", "model", "paths", "schema", "settings", "training"},
    "studies": {
        "course", "data", "display", "evaluation", "files", "paths", "plots", "schema", "settings", "training",
        "troubleshooting",
    },
    "sharing": {
        "data", "display", "evaluation", "files", "model", "paths", "schema", "settings", "training",
    },
    "assets": {"data", "evaluation", "files", "model", "paths", "settings", "training"},
    "__main__": {
        "course", "data", "display", "environment", "files", "paths", "schema", "settings", "sharing", "studies",
        "training", "troubleshooting",
    },
}  # fmt: skip


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_every_dependency_is_pinned_within_its_range(requirement):
    pins = {name.lower().replace("_", "-"): version for name, version in PINS.items()}
    assert pins[requirement.name] in requirement.specifier


def test_every_pinned_version_runs_on_every_python_allowed():
    # not only on the newest of each: Debian has 3.11.2, and networkx 3.6.1 leaves 3.14.1 out
    (major, oldest), (_, newest) = PYTHONS
    pythons = [f"{major}.{minor}.{patch}" for minor in range(oldest, newest + 1) for patch in range(20)]
    pinned = [d.metadata for d in distributions() if PINS.get(d.name) == d.version]
    assert pinned
    for package in pinned:
        specifier = SpecifierSet(package["Requires-Python"] or "")
        assert [*specifier.filter(pythons)] == pythons, f"{package['Name']} runs on {specifier} only"


def test_the_conda_python_is_within_the_projects_range():
    python = next(line for line in CONDA["dependencies"] if line.startswith("python="))
    assert python.split("=")[1] + ".0" in SpecifierSet(PROJECT["requires-python"])


def test_supported_pythons_match_requires_python():
    oldest, newest = PYTHONS
    assert PROJECT["requires-python"] == f">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"
    (why,) = (rule.why for rule in RULES if rule.id == "python_version")
    assert f"Python {oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]};" in why


def test_the_makefile_has_every_task_and_nothing_else():
    (line,) = re.findall(r"^TASKS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert line.split() == list(TASKS)


def test_ci_and_container_files_call_existing_tasks_and_commands():
    files = (".ci/run", ".github/workflows/course.yml", ".devcontainer/Dockerfile", ".devcontainer/devcontainer.json")
    for name in (*files, "environment.yml"):
        called = re.findall(r"python3? -m helpers (\w+)", (ROOT / name).read_text(encoding="utf-8"))
        assert called
        assert set(called) <= {*TASKS, *main.commands}


def tracked_text():
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        content = (ROOT / name).read_bytes() if (ROOT / name).exists() else b"\0"
        if b"\0" not in content:  # weights, pictures and checkpoints are not text
            yield name, content.decode("utf-8")


def test_no_file_names_a_machines_path():
    home = re.compile(r"/(?:home|Users|root)/\w+|" + re.escape(str(ROOT)))
    assert [name for name, text in tracked_text() if home.search(text)] == []


def test_notebooks_tolerate_files_in_use_when_they_remove_a_folder():
    for path in NOTEBOOKS.glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            lines = [line for line in cell["source"] if "rmtree(" in line and cell["cell_type"] == "code"]
            assert all("ignore_errors=True" in line for line in lines), (path.name, lines)


def test_no_file_names_a_package_registry():
    hosts = re.compile(r"pypi\.(?:org|io)|python" r"hosted|anaconda\.(?:org|com)", re.IGNORECASE)
    assert [name for name, text in tracked_text() if hosts.search(text)] == []


def test_importing_the_package_imports_nothing_heavy():
    source = "import sys, helpers; print(sorted({'torch', 'transformers', 'datasets', 'pydantic'} & set(sys.modules)))"
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT)
    assert child.stdout == "[]\n"


def test_importing_the_settings_does_not_import_torch():
    source = "import sys, helpers.settings, helpers.__main__; print('torch' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT)
    assert child.stdout == "False\n"


@cache
def modules():
    """Return every module of the package: dotted name -> the dotted names of our modules that it imports."""
    paths = sorted((ROOT / "helpers").rglob("*.py"))
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    graph = {}
    for name, path in names.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports must be absolute"
                imported |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
        graph[name] = {other for other in imported if other in names and other not in ("helpers", name)}
    return graph


def room(module):
    return module.split(".")[1] if "." in module else "__init__"


def test_every_package_imports_only_those_below_it():
    rows = list(ROOMS)
    assert all(rows.index(below) < rows.index(name) for name, row in ROOMS.items() for below in row)
    used = {name: set() for name in ROOMS}
    for module, imported in modules().items():
        used[room(module)] |= {room(other) for other in imported} - {room(module)}
    assert {name: used[name] - ROOMS[name] for name in used if used[name] - ROOMS[name]} == {}
    assert {name: ROOMS[name] - used[name] for name in used if ROOMS[name] - used[name]} == {}, "not imported"


def test_the_docstring_lists_every_package_and_module_in_import_order():
    assert re.findall(r"^    (\w+)/? ", helpers.__doc__, re.MULTILINE) == list(ROOMS)[1:]


@pytest.mark.parametrize("name", PYPROJECT["tool"]["setuptools"]["packages"][1:])
def test_a_packages_docstring_names_each_of_its_modules(name):
    folder = ROOT.joinpath(*name.split("."))
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    documented = set(re.findall(r"`(\w+)`", importlib.import_module(name).__doc__))
    assert modules <= documented


def test_there_are_no_circular_imports():
    TopologicalSorter(modules()).prepare()


def test_notebooks_and_guides_import_only_public_names_of_packages():
    inside = re.compile(
        r"(?:from|import) (helpers\.(?:data|training|evaluation|troubleshooting|widgets|studies|sharing)\.\w+)"
    )
    read = [*NOTEBOOKS.glob("*.ipynb"), ROOT / "README.md", NOTEBOOKS / "GUIDE.md"]
    assert {path.name: inside.findall(path.read_text(encoding="utf-8")) for path in read} == {p.name: [] for p in read}


@pytest.mark.parametrize("name", [name for name in ROOMS if (ROOT / "helpers" / name / "__init__.py").exists()])
def test_every_public_name_of_a_package_can_be_imported_and_is_not_a_module(name):
    package = importlib.import_module(f"helpers.{name}")
    assert package.__all__, "a package lists its public names"
    for public in package.__all__:
        assert not inspect.ismodule(getattr(package, public)), f"{public} is also the name of a module"
    with pytest.raises(AttributeError, match="nothing_here"):
        package.nothing_here  # noqa: B018


def test_the_guide_refers_to_existing_code():
    guide = (NOTEBOOKS / "GUIDE.md").read_text(encoding="utf-8")
    places = re.findall(r"`([\w/]+\.(?:py|yaml))`(?:: `(\w+)`)?", guide[guide.index("look at, in `helpers/`") :])
    assert len(places) > 15
    for path, name in places:
        text = (ROOT / "helpers" / path).read_text(encoding="utf-8")
        assert not name or re.search(rf"def {name}\(", text), (path, name)


def notebooks():
    return sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
class TestNotebook:
    def test_is_stored_clean(self, path):
        nb = json.loads(path.read_text(encoding="utf-8"))
        assert nb["metadata"]["kernelspec"]["name"] == "python3"
        assert "papermill" not in nb["metadata"]
        code = [cell for cell in nb["cells"] if cell["cell_type"] == "code"]
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)

    def test_shows_numbers_with_five_digits(self, path):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        first = next(cell for cell in cells if cell["cell_type"] == "code")
        assert "%precision %.5g\n" in first["source"]

    def test_parameters_are_literals_with_the_settings_defaults(self, path):
        nb = json.loads(path.read_text(encoding="utf-8"))
        tagged = [cell for cell in nb["cells"] if "parameters" in cell["metadata"].get("tags", [])]
        assert len(tagged) == 1
        tree = ast.parse("".join(tagged[0]["source"]))
        values = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}
        kinds = {"02": DataSettings, "03": TrainingSettings, "04": EvaluationSettings}
        assert values == kinds.get(path.stem[:2], RunSettings)().model_dump()

    def test_stays_within_the_size_of_a_lesson(self, path):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        read = [cell for cell in code if "parameters" not in cell["metadata"].get("tags", [])]  # that one is a list
        sizes = sorted(sum(1 for line in "".join(cell["source"]).splitlines() if line.strip()) for cell in read)
        after_prose = [b["cell_type"] == "markdown" for b, c in pairwise(cells) if c in code]
        assert 20 <= len(code) <= 46
        assert sizes[len(sizes) // 2] <= 6
        assert sizes[-1] <= 45  # the longest is a complete training script
        assert sum(after_prose) / len(code) >= 0.85


def test_there_are_six_notebooks():
    assert len(notebooks()) == 6
