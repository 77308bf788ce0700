"""The tasks of a clone: what each runs, and how a command finds the environment that it needs."""

import __future__

import ast
import os
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from helpers.environment import tasks
from helpers.environment.install import InstallError


def finished_process(code):
    return types.SimpleNamespace(returncode=code, wait=lambda: code, kill=lambda: None)


@pytest.fixture
def executed(monkeypatch):
    """Return the commands that are run, without their Python; each succeeds, and everything is installed."""
    commands = []

    def start(command, **options):
        commands.append(" ".join(command[1:]))
        return finished_process(commands[-1].endswith("--format-fails"))

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(tasks, "install", lambda **options: commands.append(f"install {options}") or Path("python"))
    return commands


def exit_code_of(*arguments):
    with pytest.raises(SystemExit) as end:
        tasks.start(list(arguments))
    return end.value.code


def test_a_task_lets_its_processes_cache_bytecode(executed, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert exit_code_of("course") == 0
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ


def test_course_installs_then_runs_with_the_remaining_arguments(executed, monkeypatch):
    monkeypatch.delenv("TORCH", raising=False)
    assert exit_code_of("course", "--here", "--preset", "8gb", "02") == 0
    assert executed == ["install {'here': True, 'torch': 'auto'}", "-m helpers run --preset 8gb 02"]


def test_the_wheel_is_set_by_an_option_or_a_variable(executed, monkeypatch):
    monkeypatch.setenv("TORCH", "cu126")
    exit_code_of("install")
    exit_code_of("install", "--torch", "cpu")
    assert executed == ["install {'here': False, 'torch': 'cu126'}", "install {'here': False, 'torch': 'cpu'}"]


@pytest.mark.parametrize("given", [("install", "--touch", "cpu"), ("lint", "--fix"), ("pictures", "panel")])
def test_unknown_arguments_are_refused_before_anything_is_installed(executed, capsys, given):
    assert exit_code_of(*given) == 2
    assert f"unrecognized arguments: {' '.join(given[1:])}\n" in capsys.readouterr().err
    assert executed == []


def test_drift_tries_the_newest_libraries_even_if_the_lowest_fail(executed, monkeypatch):
    failed = tasks._FailedError(1)
    active = []

    def fail(python, rest, **env):
        active.append(env["VIRTUAL_ENV"])
        raise failed

    monkeypatch.setattr(tasks, "_unit_tests", fail)
    assert exit_code_of("drift") == 1
    assert [Path(folder).name for folder in active] == ["lowest-direct", "highest"], "commands stay in it"
    assert [word for line in executed for word in ("lowest-direct", "highest") if f"--resolution {word}" in line] == [
        "lowest-direct",
        "highest",
    ]


def test_the_test_task_runs_lint_notebooks_units_and_browser(executed):
    assert exit_code_of("test") == 0
    parts = ("ruff check", "ruff format", "nbstripout", "--nbmake", "--dist=worksteal", "--dist=loadfile")
    assert [next(i for i, line in enumerate(executed) if part in line) for part in parts] == [1, 2, 3, 4, 5, 6]


def test_every_notebook_runs_and_05_in_its_own_test(executed):
    exit_code_of("test")
    (line,) = (line for line in executed if "--nbmake" in line)
    left_out = {path.name for path in (tasks.ROOT / "notebooks").glob("*.ipynb") if path.name not in line}
    assert left_out == {"05_troubleshooting.ipynb"}
    own = (tasks.ROOT / "tests/troubleshooting/test_notebook.py").read_text(encoding="utf-8")
    assert all(name in own for name in left_out)


@pytest.mark.parametrize("fails", ["--nbmake", "worksteal"])
def test_failing_notebooks_or_unit_tests_end_the_test_task_before_the_browser(executed, monkeypatch, fails):
    starts = subprocess.Popen

    def failing(command, **options):
        starts(command, **options)
        return finished_process(4 * any(fails in word for word in command))

    monkeypatch.setattr(subprocess, "Popen", failing)
    assert exit_code_of("test") == 4
    assert not any("tests/browser" in line for line in executed if "--ignore" not in line)


def test_a_failing_command_ends_its_task_with_its_exit_code(executed, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: executed.append(command) or finished_process(3))
    assert exit_code_of("test") == 3
    assert len(executed) == 2  # the installation, and the first command


def test_an_installation_error_is_one_sentence(monkeypatch, capsys):
    def refuse(**_):
        raise InstallError("Too little room.")

    monkeypatch.setattr(tasks, "install", refuse)
    assert exit_code_of("lab") == 1
    assert capsys.readouterr().err == "Error: Too little room.\n"


def test_an_interrupt_says_that_the_same_command_continues(monkeypatch, capsys):
    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "install", interrupt)
    assert exit_code_of("course") == 130
    assert "repeat the command to continue" in capsys.readouterr().err


class TestAnotherCommand:
    @pytest.fixture
    def bare(self, monkeypatch, tmp_path):
        """Simulate a Python without packages; return where the environment's Python would be."""
        monkeypatch.setattr(tasks, "find_spec", lambda name: None)
        python = tmp_path / "python"
        monkeypatch.setattr(tasks, "python_of", lambda folder: python)
        return python

    def test_it_runs_here_if_the_course_is_installed(self):
        assert tasks.start(["plan"]) is None

    @pytest.mark.parametrize("active", [None, "VIRTUAL_ENV", "CONDA_PREFIX"])
    def test_another_python_with_the_packages_is_used_only_if_its_environment_is_active(
        self, monkeypatch, tmp_path, executed, active
    ):
        (tmp_path / "gpt2-course.json").write_text("{}")
        tasks.python_of(tmp_path).parent.mkdir()
        tasks.python_of(tmp_path).touch()
        monkeypatch.setattr(tasks, "environment_folder", lambda: tmp_path)
        monkeypatch.setattr(tasks, "find_spec", lambda name: True)
        for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
            monkeypatch.setenv(name, sys.prefix if name == active else "/another")
        if active:
            assert tasks.start(["plan"]) is None
        else:
            assert exit_code_of("plan") == 0
        assert executed == ([] if active else ["-m helpers plan"])

    def test_it_is_passed_on_to_the_environment(self, bare, executed):
        bare.write_text("")
        assert exit_code_of("plan", "--gpu", "RTX 4090") == 0
        assert executed == ["-m helpers plan --gpu RTX 4090"]

    def test_without_an_environment_it_names_the_tasks_that_install_one(self, bare, capsys):
        assert exit_code_of("plan") == 2
        assert "Nothing is installed yet" in (message := capsys.readouterr().err)
        assert all(name in message for name in tasks.TASKS)

    def test_the_doctor_needs_no_packages(self, bare, capsys):
        assert exit_code_of("doctor", "--quick") in (0, 1)
        assert "python_version" in capsys.readouterr().out


def test_help_needs_no_packages_and_its_modules_import_on_an_old_python():
    command = [sys.executable, "-S", "-E", "-X", "importtime", "-m", "helpers", "course", "--help"]
    done = subprocess.run(command, cwd=tasks.ROOT, capture_output=True, text=True, check=False)
    imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert (done.returncode, done.stderr.splitlines()) == (0, imports)
    assert "which PyTorch wheel" in done.stdout
    names = {name for line in imports if (name := line.rpartition("|")[2].strip()).startswith("helpers")}
    assert "helpers.environment.install" in names
    for path in (tasks.ROOT / name.replace(".", "/") for name in names):
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
        nodes = ast.walk(ast.parse(source))
        is_annotated = any(getattr(node, "annotation", None) or getattr(node, "returns", None) for node in nodes)
        flags = compile(source, path, "exec", dont_inherit=True).co_flags
        # Python 3.8 cannot evaluate dict[str, int]
        assert not is_annotated or flags & __future__.annotations.compiler_flag, path


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize(("sent", "reaches_both"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_is_left_to_the_child_which_saves_its_work(monkeypatch, sent, reaches_both, tmp_path):
    """The terminal sends Ctrl-C to both processes; a signal to one process only is forwarded."""
    # _exit, because an exception raised while Python closes a file is ignored
    saving = (
        "import os, signal, time; signal.signal({0}, lambda *_: os._exit(7)); open({1!r}, 'w')\n"
        "while True: time.sleep(0.05)"
    )
    ready = tmp_path / "ready"
    start = subprocess.Popen

    def started(command, **_):
        child = start([sys.executable, "-c", saving.format(int(sent), str(ready))])
        while not ready.exists():
            assert child.poll() is None
        if reaches_both:
            child.send_signal(sent)
        threading.Timer(0.2, os.kill, [os.getpid(), sent]).start()
        return child

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(tasks, "install", lambda **_: Path("python"))
    previous = signal.getsignal(sent)
    assert exit_code_of("course") == 7, "the child's exit code"
    assert signal.getsignal(sent) is previous
