"""Studies whose trials run notebooks that are cheap, or train the tiny model; sweeps as processes of their own."""

import subprocess
import sys
import time

import nbformat
import pytest
import yaml

from helpers.settings import TrainingSettings
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
    open("/dev/full", "w").write("x" * 100_000)
(folder / "history.jsonl").write_text(json.dumps({"step": 1, "eval_loss": 1000 * learning_rate + weight_decay}))
(folder / "training.json").write_text(json.dumps({"tokens": 10, "seconds": 1.0, "peak_bytes": 2**20}))
"""
TRAINING = """
from helpers.settings import TrainingSettings
from helpers.studies.queue import open_study
from helpers.studies.study_file import read_study
from helpers.studies.worker import work
from helpers.training.fine_tuning import fine_tune
fine_tune(TrainingSettings.from_notebook(globals()))
"""


@pytest.fixture
def write_notebook(tmp_path):
    """Return a function that writes a notebook of a parameters cell and one more; it returns the path as text."""

    def write(name, parameters, code):
        cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
        nb = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(code)])
        nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(nb, tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture
def cheap_notebook(write_notebook):
    """Return a notebook that takes no time, records each start, and leaves the files of a training."""
    return write_notebook("cheap.ipynb", 'run = "x"\nlearning_rate = 1e-3\nweight_decay = 0.01', CHEAP)


@pytest.fixture
def training_notebook(write_notebook):
    """Return a notebook that trains and does nothing else."""
    declared = "\n".join(f"{name} = {value!r}" for name, value in TrainingSettings().model_dump().items())
    return write_notebook("training.ipynb", declared, TRAINING)


@pytest.fixture
def study_file(tmp_path, cheap_notebook):
    """Return a function that writes a study file of two by two cheap trials, with changes; it returns the path."""

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


def sweep(file, *options):
    """Start the command; return the process."""
    command = [sys.executable, "-m", "helpers", "sweep", str(file), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_worker(file, **options):
    """Run all trials of a study file in this process; return the study, and the same one in Optuna's storage."""
    study = read_study(file)
    opened = open_study(study)
    work(study, opened, **options)
    return study, opened


def ended(process, *, seconds=120):
    """Wait for a command; return its exit code and all its output."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out + err


def wait_until(condition, *, seconds=60):
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def starts(folder):
    """Return how often each trial's notebook was started."""
    return {path.parent.name: path.read_text().count("started") for path in sorted(folder.glob("*/starts.log"))}
