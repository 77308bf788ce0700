"""Studies whose trials run cheap notebooks or train the tiny model; sweeps as separate processes."""

import subprocess
import sys
import time

import nbformat
import pytest
import yaml

from helpers.course import CourseError
from helpers.settings import SettingsError
from helpers.studies.queue import open_study
from helpers.studies.study_file import read_study
from helpers.studies.worker import work

CHEAP = """
import json, os, time
from helpers.settings import run_folder
folder = run_folder(run)
folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts.log").open("a") as file:
    file.write("started\\n")
time.sleep(float(os.environ.get("NAP", "0")))
if weight_decay == 0.5:
    raise ValueError("weight_decay 0.5 is broken on purpose")
if weight_decay == 0.6 and not os.environ.get("ROOM"):
    with open("/dev/full", "w") as file:
        file.write("x" * 100_000)
(folder / "history.jsonl").write_text(json.dumps({"step": 1, "eval_loss": 1000 * learning_rate + weight_decay}))
(folder / "training.json").write_text(json.dumps({"tokens": 10, "seconds": 1.0, "peak_bytes": 2**20}))
"""


@pytest.fixture
def write_notebook(write_notebook):
    """Return that function; it returns the path as text, as in a study file."""
    return lambda *notebook: str(write_notebook(*notebook))


@pytest.fixture
def cheap_notebook(write_notebook):
    """Return a notebook that takes no time, records each start, and writes the files of a training run."""
    return write_notebook("cheap.ipynb", 'run = "x"\nlearning_rate = 1e-3\nweight_decay = 0.01', CHEAP)


@pytest.fixture
def study_file(tmp_path, cheap_notebook):
    """Return a function that writes a study file of 2 x 2 cheap trials, with changes, and returns its path."""

    def write(**changes):
        study = {
            "study": "grid",
            "vary": {"learning_rate": [0.001, 0.002], "weight_decay": [0.0, 0.1]},
            "notebooks": [cheap_notebook],
        }
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(study | changes, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def without_kernels(monkeypatch):
    """Run the notebooks of trials in this process: a kernel and a report page for each would take seconds."""

    def run_course(notebooks, *, run, parameters, defaults):
        for path in notebooks:
            declared, code = (cell.source for cell in nbformat.read(path, as_version=4).cells)
            names = {}
            exec(declared, names)
            names |= {name: value for name, value in (defaults | parameters).items() if name in names} | {"run": run}
            try:
                exec(code, names)
            except Exception as error:  # noqa: BLE001 - as run_course does
                raise CourseError(f"{path.name} failed: {type(error).__name__}: {error}") from None

    monkeypatch.setattr("helpers.studies.trial.run_course", run_course)


def sweep(file, *options):
    """Start the command; return the process. Planning for a GPU needs no torch, which takes seconds to import."""
    command = [sys.executable, "-m", "helpers", "sweep", str(file), "--gpu", "RTX 4070 Ti", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_worker(file, **options):
    """Run all trials of a study file in this process; return the study and its Optuna study."""
    study = read_study(file)
    optuna_study = open_study(study)
    work(study, optuna_study, **options)
    return study, optuna_study


def error_of(file):
    """Return the error message that a study file gives."""
    with pytest.raises(SettingsError) as error:
        read_study(file)
    return str(error.value)


def finish(process, *, seconds=240):
    """Wait for a command; return its exit code and all its output."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out + err


def wait_until(condition, *, seconds=240):
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def count_starts(folder):
    """Return how many times each trial's notebook was started."""
    return {path.parent.name: path.read_text().count("started") for path in sorted(folder.glob("*/starts.log"))}
