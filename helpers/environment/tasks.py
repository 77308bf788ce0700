"""The tasks that work in a fresh clone, before anything is installed: `python3 -m helpers course`, `test`, `lab`, ...

Each task installs what is missing, then runs its commands with the environment's Python. The Makefile and CI call them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from helpers.display import print_any_character
from helpers.environment.install import RECORD, InstallError, environment_folder, install, python_of
from helpers.paths import COMMAND, ROOT

_COURSE_PACKAGES = ("click", "pydantic", "transformers")  # a Python that has these has the course's packages
_NOTEBOOK_EXTRAS = "metadata.papermill cell.metadata.papermill"
_WITHOUT_ARGUMENTS = ("install", "lint", "pictures")  # a mistyped --torch must not install 6 GB
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # two processes on two cores do more than two threads of one
_PYTEST = ("pytest", "-n", "2", "-p", "no:nbmake")  # importing nbmake would take 2 s in each process


class _FailedError(RuntimeError):
    """A command of a task failed and printed why; the argument is its exit code."""


def _exit_code_of(command: list[str], **options: Any) -> int:
    """Run a command and return its exit code; signals to end are left to the command, which saves its work."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # Ctrl-C reaches the child too, and Python would kill it after a quarter of a second. A shell's background job
    # ignores Ctrl-C, and so must its child.
    if previous[signal.SIGINT] is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)
    try:
        child = subprocess.Popen(command, **options)  # noqa: S603
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())  # unlike Ctrl-C, sent to one process only
        return child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(python: Path, *arguments: str, **env: str) -> None:
    """Run a module with the environment's Python, in the project's folder."""
    if code := _exit_code_of([str(python), "-m", *arguments], cwd=ROOT, env={**os.environ, **env}):
        raise _FailedError(code)


def _test(python: Path, rest: list[str]) -> None:
    _lint(python, [])
    # The notebooks are executed once: the browser tests show the executed copies of the longest ones.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as finished:
        copies, runs = shutil.copytree(ROOT / "notebooks", Path(finished, "notebooks")), str(Path(finished, "runs"))
        nbmake = ("pytest", "--nbmake", "--nbmake-timeout=1200", "--overwrite")
        # one process more than cores, so that no core is idle when one of the three has finished
        with _in_background(python, *nbmake, *_notebooks(copies), COURSE_RUNS=runs):
            _unit_tests(python, rest, FINISHED=finished)
        _browser(python, [], FINISHED=finished)


@contextmanager
def _in_background(python: Path, *arguments: str, **env: str) -> Iterator[None]:
    """Run a module in parallel with the block, on one thread; afterwards print its output and raise if it failed."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        child = subprocess.Popen(  # noqa: S603
            [str(python), "-m", *arguments],
            cwd=ROOT,
            env={**os.environ, **_ONE_THREAD, **env},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
            child.wait()
        finally:  # if the block failed, it is still running
            child.kill()
            child.wait()
            output.seek(0)
            print(output.read(), flush=True)
    if child.returncode:
        raise _FailedError(child.returncode)


def _notebooks(folder: Path) -> list[str]:
    """Return the notebooks except 05: a unit test runs that one and checks the results of its failures."""
    return [str(path) for path in sorted(folder.glob("*.ipynb")) if not path.name.startswith("05")]


def _unit_tests(python: Path, rest: list[str], **env: str) -> None:
    ignored = ["--ignore=tests/benchmarks", "--ignore=tests/browser"]
    _run(python, *_PYTEST, "--dist=worksteal", *ignored, "tests", "helpers", *rest, **_ONE_THREAD, **env)


def _lint(python: Path, rest: list[str]) -> None:
    notebooks = [str(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    _run(python, "ruff", "check")
    _run(python, "ruff", "format", "--check")
    _run(python, "nbstripout", "--verify", "--keep-id", "--extra-keys", _NOTEBOOK_EXTRAS, *notebooks)


def _drift(python: Path, rest: list[str]) -> None:
    failed = None
    for resolution in ("lowest-direct", "highest"):
        folder = ROOT / ".venv-drift" / resolution
        target = ["--python", str(python_of(folder)), "--resolution", resolution]
        try:
            _run(python, "uv", "venv", "--clear", "--seed", "--python", str(python), str(folder))
            _run(python, "uv", "pip", "install", *target, "--editable", ".[test,gpu]")
            # an active environment: otherwise the commands that tests start would be handed over to .venv
            _unit_tests(python_of(folder), rest, VIRTUAL_ENV=str(folder))
        except _FailedError as error:  # test the other end of the range too
            failed = error
    if failed:
        raise failed


def _module_task(*words: str) -> Callable[..., None]:
    """Return a task that runs a module with the rest of the command line."""
    return lambda python, rest, **env: _run(python, *words, *rest, **env)


_browser = _module_task(*_PYTEST, "--dist=loadfile", "tests/browser")


def _pictures(python: Path, rest: list[str]) -> None:
    _browser(python, [])
    _run(python, "tests.browser.pictures")


# name -> its help, and a function of the environment's Python and the rest of the command line
TASKS: dict[str, tuple[str, Callable[..., None]]] = {
    "install": ("Install the course, and do nothing else.", lambda python, rest: None),
    "course": ("Run the five notebooks and write a report; takes `run`'s options.", _module_task("helpers", "run")),
    "lab": ("Open the notebooks in JupyterLab.", _module_task("jupyterlab", "notebooks")),
    "test": ("Run lint, unit tests, all notebooks; with Chromium, browser tests.", _test),
    "lint": ("Check the code with ruff, and that notebooks have no outputs.", _lint),
    "browser": ("Run notebooks and panels in a real JupyterLab; needs Chromium.", _browser),
    "pictures": ("Take the README's pictures with the browser tests.", _pictures),
    "bench": ("Run the benchmarks.", _module_task("pytest", "-s", "tests/benchmarks")),
    "drift": ("Run the unit tests with the lowest, then the newest libraries.", _drift),
}


def start(arguments: list[str]) -> None:
    """Run a task or hand a command over to the environment of the course, and exit; return if this Python can run it.

    This Python can run a command if it has the packages and belongs to that environment or to an activated one, or if
    no installation into that environment was completed. If nothing is installed, `doctor` runs without packages, and
    any other command prints the list of tasks.
    """
    name = arguments[0] if arguments else ""
    if name in TASKS:
        sys.exit(_run_task(name, arguments[1:]))
    folder = environment_folder()
    python, is_here = python_of(folder), Path(sys.prefix).resolve() == folder.resolve()
    is_active = sys.prefix in (os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX"))
    if all(map(find_spec, _COURSE_PACKAGES)) and (is_here or is_active or not (folder / RECORD).is_file()):
        return
    if python.exists() and python != Path(sys.executable):
        sys.exit(_exit_code_of([str(python), "-m", "helpers", *arguments]))
    if name == "doctor":
        from helpers.environment.__main__ import main

        sys.exit(main(arguments[1:], program=f"{COMMAND} doctor"))
    print(f"Nothing is installed yet. These tasks install what they need:\n{task_list()}", file=sys.stderr)
    sys.exit(0 if name in ("-h", "--help") else 2)


def task_list() -> str:
    """Return the tasks with their descriptions, one per line."""
    return "\n".join(f"  {name:10}{help_text}" for name, (help_text, _) in TASKS.items())


def _run_task(name: str, arguments: list[str]) -> int:
    """Install what is missing, run a task, and return its exit code; errors are printed as one sentence."""
    help_text, task = TASKS[name]
    parser = argparse.ArgumentParser(prog=f"{COMMAND} {name}", description=help_text, allow_abbrev=False)
    parser.add_argument("--here", action="store_true", help="install into this Python, not into .venv")
    parser.add_argument(
        "--torch",
        default=os.environ.get("TORCH", ""),
        metavar="TAG",
        help="which PyTorch wheel: cpu, cu126, cu130, ...; auto, the default, is the one that fits this machine",
    )
    options, rest = parser.parse_known_args(arguments)
    if rest and name in _WITHOUT_ARGUMENTS:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set for the imports; an installation must get Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    print_any_character()
    # Containers often set it. Each kernel and worker would then recompile PyTorch and transformers: 11 s every time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        task(install(here=options.here, torch=options.torch.strip().lower() or "auto"), rest)
    except _FailedError as failed:
        return int(failed.args[0])
    except InstallError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted: completed work is kept; repeat the command to continue.", file=sys.stderr)
        return 130
    return 0
