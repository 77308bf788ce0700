"""What a second worker gains on the same cores, and what a study adds to the notebooks it runs: numbers of one run."""

import json
import statistics
import subprocess
import sys
import time

import optuna
import pytest
import yaml

from helpers.studies.queue import open_study
from helpers.studies.study_file import read_study


@pytest.fixture
def write_study(tmp_path, training_notebook):
    """Return a function that writes a grid of 12 short training runs of the pocket model and returns its path."""

    def write(name):
        study = {
            "study": name,
            "settings": {"num_train_epochs": 0.4, "eval_steps": 1000, "sample_prompt": ""},
            "vary": {"learning_rate": [0.0003, 0.001, 0.002, 0.004], "weight_decay": [0.0, 0.01, 0.1]},
            "notebooks": [str(training_notebook)],
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(study), encoding="utf-8")
        return path

    return write


def run(file, workers):
    """Run the command; return its seconds and each trial's seconds outside its notebook's cells."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "helpers", "sweep", str(file), "--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stdout + done.stderr
    study = read_study(file)
    trials = open_study(study).get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert len(trials) == 12
    return seconds, [trial.duration.total_seconds() - cell_seconds(study.folder, trial) for trial in trials]


def cell_seconds(folder, trial):
    """Return how long the cells of a trial's notebook ran, as papermill recorded it."""
    (notebook,) = (folder / f"trial-{trial.user_attrs['point']:03d}" / "notebooks").glob("*.ipynb")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return sum(cell["metadata"]["papermill"]["duration"] for cell in cells)


def test_two_workers_are_faster_than_one_and_a_trial_adds_little_overhead(write_study):
    print(f"\n{'workers':>8}{'seconds':>10}{'overhead of a trial: median':>30}{'most':>8}")
    result = {}
    for workers in (1, 2):
        seconds, overheads = result[workers] = run(write_study(f"workers-{workers}"), workers)
        print(f"{workers:8}{seconds:10.1f}{statistics.median(overheads):28.2f} s{max(overheads):6.2f} s")
    assert result[2][0] < result[1][0]
    assert statistics.median(result[1][1]) < 3
