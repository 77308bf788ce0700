"""The commands; `sweep` also as a process that finishes, is killed or joined, and never runs a trial twice."""

import contextlib
import errno
import json
import random
import re
import sys
import threading
import time

import psutil
import pytest

from helpers.files import environment_variables
from helpers.settings import TrainingSettings
from helpers.studies.comparison import compare
from helpers.studies.queue import open_study
from helpers.studies.study_file import read_study
from helpers.studies.worker import work
from helpers.training.fine_tuning import fine_tune
from helpers.training.stopping import TrainingStoppedError
from tests.command_line import call
from tests.studies.conftest import CHEAP, count_starts, sweep, wait_until
from tests.studies.recorded_runs import OTHER_TEXT, write_run, write_trials


def workers_of(process):
    with contextlib.suppress(psutil.Error):  # one of them can end meanwhile
        # recursive: on Windows a program of a virtual environment starts the real Python as its child
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "helpers.studies.worker" in child.cmdline()]
    return []


def killed(process):
    process.kill()
    process.communicate()


def finished(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("trial-*/training.json")}


def test_two_commands_share_a_study(study_file, runs, monkeypatch):
    monkeypatch.setenv("NAP", "0.3")
    file = study_file(vary={"learning_rate": [0.001, 0.002, 0.003]})
    open_study(read_study(file))
    other = sweep(file)
    result = call("sweep", file)
    _, errors = other.communicate()
    assert (result.exit_code, other.returncode) == (0, 0), result.output + errors
    assert count_starts(runs / "grid") == {f"trial-{n:03d}": 1 for n in range(3)}
    assert "3 done, 0 running of 3" in result.output
    assert "Best: grid/trial-000, eval loss 1.01 with learning_rate 0.001." in result.output
    assert "<table>" in (runs / "grid/comparison.html").read_text(encoding="utf-8")


def test_a_sweep_killed_twice_ends_its_workers_and_neither_loses_nor_repeats_a_trial(study_file, runs, monkeypatch):
    file, folder = study_file(vary={"learning_rate": [0.001, 0.002, 0.003]}), runs / "grid"
    random_state = random.Random(7)
    monkeypatch.setenv("NAP", "60")
    process = sweep(file, "--workers", "2")
    wait_until(lambda: len(count_starts(folder)) == 2)
    processes = psutil.Process(process.pid).children(recursive=True)
    assert len(processes) >= 4, "two workers and their two kernels"
    killed(process)
    assert psutil.wait_procs(processes, timeout=60)[1] == []
    monkeypatch.setenv("NAP", "1")
    process = sweep(file, "--workers", "2")
    wait_until(lambda: process.poll() is not None or workers_of(process))
    time.sleep(random_state.uniform(0.5, 3.5))
    workers = workers_of(process)
    if workers:
        random_state.choice(workers).kill()
    killed(process)
    psutil.wait_procs(workers, timeout=60)
    kept = finished(folder)
    result = call("sweep", file, "--workers", "2")
    assert result.exit_code == 0, result.output
    now = finished(folder)
    assert {name: now[name] for name in kept} == kept, "a finished trial was run again"
    assert len(now) == 3
    assert {json.loads(path.read_text())["state"] for path in folder.glob("trial-*/trial.json")} == {"done"}


def test_an_interrupted_trial_runs_the_course_notebook_and_resumes_from_its_checkpoint(
    study_file, notebook_03_until_trained, tiny_settings, runs
):
    tiny = tiny_settings.model_dump(include={"model_name_or_path", "source", "block_size", "mixed_precision"})
    settings = {**tiny, "num_train_epochs": 2, "save_total_limit": 100, "sample_prompt": "", "eval_steps": 50}
    file = study_file(vary={"learning_rate": [0.001]}, settings=settings, notebooks=[str(notebook_03_until_trained)])
    trial, stop = TrainingSettings(run="trial-000", learning_rate=0.001, **settings), threading.Event()
    open_study(read_study(file)).ask()  # by a worker that was killed during training
    stop.set()
    with environment_variables({"COURSE_RUNS": str(runs / "grid")}), pytest.raises(TrainingStoppedError):
        fine_tune(trial, stop=stop)
    written = {path: path.stat().st_mtime_ns for path in (runs / "grid/trial-000/checkpoints").glob("checkpoint-1/*")}
    result = call("sweep", file)
    assert result.exit_code == 0, result.output
    assert written and {path: path.stat().st_mtime_ns for path in written} == written, "the first step was not repeated"
    trials = open_study(read_study(file)).get_trials()
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"]
    assert {trial.user_attrs["point"] for trial in trials} == {0}
    saved = json.loads((runs / "grid/trial-000/settings.json").read_text())["settings"]
    assert TrainingSettings(**saved) == trial
    assert (runs / "grid/trial-000/notebooks/03_fine_tuning.ipynb").exists()


def test_a_worker_that_dies_is_restarted(study_file, runs, monkeypatch):
    monkeypatch.setenv("NAP", "1")

    def kill_the_worker():
        wait_until(lambda: count_starts(runs / "grid"))
        workers_of(psutil.Process())[0].kill()

    killer = threading.Thread(target=kill_the_worker)
    killer.start()
    result = call("sweep", study_file(vary={"learning_rate": [0.001]}))
    killer.join()
    assert result.exit_code == 0, result.output
    assert "1 done, 0 running of 1" in result.output
    assert count_starts(runs / "grid") == {"trial-000": 2}


def test_a_dry_run_shows_the_plan_and_writes_nothing(study_file, runs):
    result = call("sweep", study_file(budgets={"hours": 8, "disk_gib": 5}), "--dry-run")
    assert result.exit_code == 0, result.output
    assert re.search(r"trials +4, the points of a grid", result.output)
    assert "none starts after 8 h" in result.output
    assert "budget 5 GiB" in result.output
    assert not runs.exists()


@pytest.fixture
def no_workers(monkeypatch):
    """Make the command start no workers, as if they had ended at once."""
    monkeypatch.setattr("helpers.studies.supervision.supervise", lambda *_, **__: [])


def test_a_dry_run_of_a_started_study_shows_its_progress_and_writes_nothing(study_file, runs):
    file = study_file()
    optuna_study = open_study(read_study(file))
    optuna_study.tell(optuna_study.ask(), 1.5)
    before = (runs / "grid/study.log").read_bytes()
    result = call("sweep", file, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "1 done, 0 running, 3 waiting of 4; the file asks for the same study" in result.output
    assert re.search(r"trials +4, the points of a grid, 1 of them settled already", result.output)
    other = call("sweep", study_file(vary={"learning_rate": [0.003]}), "--dry-run")
    assert other.exit_code == 2
    assert "was started with vary = " in other.output
    assert (runs / "grid/study.log").read_bytes() == before


def test_a_disk_that_fills_up_in_the_command_is_reported(study_file, monkeypatch):
    def full(study):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("helpers.studies.queue.open_study", full)
    result = call("sweep", study_file())
    assert result.exit_code == 1
    assert "The disk is full ([Errno 28] No space left on device): free some space" in result.output


def test_trials_on_other_machines_are_reported_with_the_overall_best(study_file, runs, no_workers):
    file = study_file(vary={"learning_rate": [0.001, 0.002]})
    optuna_study = open_study(read_study(file))
    for host, loss in (("\x1b]0;owned\x07other", 1.0), ("this", 2.0)):
        trial = optuna_study.ask()
        trial.set_user_attr("worker", f"{host}:/runs/grid")
        optuna_study.tell(trial, loss)
    (runs / "grid/trial-001").mkdir()
    (runs / "grid/trial-001/trial.json").write_text('{"state": "done", "parameters": {}}')
    (runs / "mine.txt").write_text("mine")
    with contextlib.suppress(OSError):  # a system that cannot create links
        (runs / "grid/comparison.csv").symlink_to(runs / "mine.txt")
    result = call("sweep", file)
    assert (runs / "mine.txt").read_text() == "mine", "a link in the folder is replaced, not followed"
    assert (runs / "grid/comparison.csv").read_text(encoding="utf-8").startswith("text,rank,run")
    assert "1 of 2 finished trials are on other machines" in result.output
    assert "the best of all is trial-000: eval_loss 1.0000" in result.output
    assert "on other." in result.output, "without the escape sequence"


def test_a_study_whose_trials_all_failed_exits_with_1_and_retry_failed_runs_them_again(
    study_file, write_notebook, without_kernels, runs, monkeypatch
):
    monkeypatch.setattr(
        "helpers.studies.supervision.supervise", lambda study, file, optuna_study, **_: work(study, optuna_study) or []
    )
    code = CHEAP.replace("weight_decay == 0.5", "not os.environ.get('FIXED')")
    notebook = write_notebook("a.ipynb", 'run = "x"\nlearning_rate = 1e-3\nweight_decay = 0.01', code)
    file = study_file(vary={"learning_rate": [0.001, 0.002]}, notebooks=[notebook])
    result = call("sweep", file)
    assert result.exit_code == 1
    assert "No trial has a metric (0 done, 0 running, 2 failed of 2)" in result.output
    monkeypatch.setenv("FIXED", "1")
    assert call("sweep", file).exit_code == 1, "failed trials are not retried"
    result = call("sweep", file, "--retry-failed")
    assert result.exit_code == 0, result.output
    assert count_starts(runs / "grid") == {"trial-000": 2, "trial-001": 2}


def test_workers_that_do_not_fit_the_gpu_are_refused_before_anything_is_written(study_file, runs):
    file = study_file(preset="rtx-4070-ti", vary={"learning_rate": [n / 1e5 for n in range(1, 9)]}, notebooks=["03"])
    result = call("sweep", file, "--gpu", "RTX 4070 Ti", "--workers", "8")
    assert result.exit_code == 2
    assert "8 workers hold" in result.output
    assert not runs.exists()


def test_sweep_and_plan_both_accept_the_processor(study_file, runs):
    result = call("sweep", study_file(), "--gpu", "processor", "--dry-run")
    assert result.exit_code == 0
    assert "predicted for this processor, one trial after the other" in result.output
    assert " on this processor" in call("plan", "--gpu", "processor").output


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_paused_study_gives_the_reason_and_exits_with_1(study_file):
    result = call("sweep", study_file(vary={"weight_decay": [0.6, 0.1]}))
    assert result.exit_code == 1
    assert result.output.count("The study is paused: the disk is full") == 1
    assert "Free some space and give the same command again" in result.output


def test_compare_writes_the_table_and_promotes_the_best(runs, tmp_path):
    write_trials(runs)
    result = call("compare", "rates", "--csv", tmp_path / "a.csv", "--html", tmp_path / "a.html", "--promote", "best")
    assert result.exit_code == 0, result.output
    assert "Best: rates/trial-001, eval loss 2" in result.output
    assert f"rates/trial-001 is now the run best: {runs / 'best'}" in result.output
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == compare("rates").to_csv()
    assert "<table>" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert compare("best").runs[0].eval_loss == 2.0


def test_compare_does_not_choose_between_runs_on_different_texts(runs):
    write_run(runs / "a")
    write_run(runs / "b", text=OTHER_TEXT)
    result = call("compare", "--promote", "best")
    assert result.exit_code == 2
    assert "There are 2 best runs, one per text: name the one to promote" in result.output
