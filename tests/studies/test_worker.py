import io
import subprocess
import sys
import time

import pytest

from helpers.paths import ROOT
from helpers.studies import worker
from helpers.studies.queue import open_study, trials_of
from helpers.studies.study_file import read_study
from helpers.studies.trial import StudyPausedError
from helpers.studies.worker import work
from tests.studies.conftest import count_starts, run_worker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def test_points_beyond_a_lowered_budget_wait_until_it_is_raised(without_kernels, study_file):
    open_study(read_study(study_file()))
    study, optuna_study = run_worker(study_file(budgets={"trials": 1}))
    assert [trial.user_attrs["point"] for trial in trials_of(study, optuna_study)] == [0]
    study = read_study(study_file(budgets={"trials": 3}))
    optuna_study = open_study(study)
    optuna_study.enqueue_trial(
        {"learning_rate": 0.001, "weight_decay": 0.0}, user_attrs={"point": 0}
    )  # behind all others
    work(study, optuna_study)
    assert count_starts(study.folder) == {f"trial-{n:03d}": 1 for n in range(3)}
    study, optuna_study = run_worker(study_file())
    assert count_starts(study.folder) == {f"trial-{n:03d}": 1 for n in range(4)}


def test_a_disk_too_full_for_a_trial_pauses_the_study_before_it_starts(study_file, monkeypatch):
    monkeypatch.setattr("helpers.studies.study_plan.free_bytes", lambda folder: 1_000_000)
    with pytest.raises(StudyPausedError, match=r"The next trial takes \d+ MiB and the disk of .* has 1 MiB left"):
        run_worker(study_file())


def test_a_disk_budget_pauses_the_study(study_file):
    with pytest.raises(StudyPausedError, match=r"does not fit into budgets\.disk_gib = 0\.01: .* Raise the budget"):
        run_worker(study_file(budgets={"disk_gib": 0.01}))


def test_no_trial_starts_after_the_time_budget_ends(study_file):
    file = study_file()
    with pytest.raises(StudyPausedError, match="is used up: no further trial starts"):
        run_worker(file, deadline=time.time() - 1)
    assert count_starts(read_study(file).folder) == {}


def test_the_reason_for_a_pause_reaches_the_command_with_any_code_page(study_file, monkeypatch):
    def pause(*_, **__):
        raise StudyPausedError("The disk of 研究 is full.")

    monkeypatch.setattr(worker, "work", pause)
    monkeypatch.setattr(worker, "_end_with_parent", lambda: None)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))  # as under Windows
    assert worker.main(str(study_file()), "inf") == worker.PAUSED
    assert sys.stdout.buffer.getvalue().decode("utf-8").strip() == "The disk of 研究 is full."


def test_the_worker_ends_with_its_parent_without_keeping_the_pipe_as_stdin():
    source = "import os, stat, time; from helpers.studies import worker; worker._end_with_parent()"
    source += "; print(stat.S_ISFIFO(os.fstat(0).st_mode), flush=True); time.sleep(600)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, text=True, **pipes) as child:
        try:
            assert child.stdout.readline() == "False\n", "otherwise importing NumPy hangs on Windows"
            child.stdin.close()
            assert child.wait(60) == 1
        finally:
            child.kill()
