import io
import subprocess
from datetime import timedelta

import psutil
import pytest
from optuna.trial import TrialState
from rich.console import Console

from helpers.studies import supervision
from helpers.studies.queue import open_study
from helpers.studies.study_file import read_study
from helpers.studies.supervision import EndedTrials, Progress, draw, supervise


@pytest.fixture
def study(study_file):
    return read_study(study_file())


def finish(optuna_study, value=None, error=None):
    trial = optuna_study.ask()
    trial.suggest_categorical("learning_rate", [0.001, 0.002])
    if error:
        trial.set_user_attr("error", error)
        return optuna_study.tell(trial, state=TrialState.FAIL)
    return optuna_study.tell(trial, value)


def render(progress):
    console = Console(file=io.StringIO(), width=120)
    console.print(draw(progress))
    return console.file.getvalue()


def test_the_screen_shows_done_running_failed_best_and_time_left(study):
    optuna_study = open_study(study)
    finish(optuna_study, value=2.5)
    finish(optuna_study, error="a cell \x1b[2Jis broken")  # an escape sequence must not reach the terminal
    optuna_study.ask()
    progress = Progress(study, optuna_study)
    assert progress.headline.startswith("1 done, 1 running, 1 waiting, 1 failed of 4; time left: about 0 s")
    assert (progress.n_left, progress.best.value) == (2, 2.5)
    text = render(progress)
    assert "best so far  trial-000: eval_loss 2.5000 (learning_rate 0.001)" in text
    assert "trial-001: a cell is broken" in text
    assert "trial-002: running" in text
    assert "trial.log" in text


def test_the_best_trial_is_the_one_with_the_smallest_metric(study):
    opened = open_study(study)
    for value in (2.5, 2.0, 3.0):
        finish(opened, value=value)
    assert Progress(study, opened).best.value == 2.0


def test_an_interrupted_trial_counts_as_waiting_and_is_not_reported_as_ended(study):
    optuna_study = open_study(study)
    optuna_study.tell(optuna_study.ask(), state=TrialState.FAIL)  # as when its worker is stopped
    progress = Progress(study, optuna_study)
    assert progress.headline.startswith("0 done, 0 running, 4 waiting of 4")
    assert progress.n_left == 4
    lines = []
    show = EndedTrials(lines.append)
    show(Progress(study, open_study(study)))
    optuna_study.tell(optuna_study.ask(), state=TrialState.FAIL)
    show(Progress(study, optuna_study))
    assert lines == []


def test_time_left_is_unknown_before_a_trial_is_done(study):
    progress = Progress(study, open_study(study))
    assert progress.seconds_left is None
    assert progress.best is None
    shown = "0 done, 0 running, 4 waiting of 4; time left: known after the first trial"
    assert shown in render(progress)


def test_time_left_is_divided_among_the_workers(study):
    optuna_study = open_study(study)
    finish(optuna_study, value=1.0)
    for n_running, hours in ((1, 6), (2, 3)):
        optuna_study.ask()
        trials = optuna_study.get_trials(deepcopy=False)
        trials[0].datetime_start = trials[0].datetime_complete - timedelta(hours=2)
        progress = Progress(study, optuna_study)
        assert len(progress.of_state("running")) == n_running
        assert progress.seconds_left == pytest.approx(hours * 3600, abs=5)
    assert "about 3 h 00 min" in progress.headline


def test_a_finished_study_has_no_time_left(study_file):
    study = read_study(study_file(vary={"learning_rate": [0.001]}))
    optuna_study = open_study(study)
    finish(optuna_study, value=1.0)
    assert Progress(study, optuna_study).headline == "1 done, 0 running of 1; time left: none"


def test_without_a_terminal_each_trial_that_ends_prints_one_line(study):
    optuna_study = open_study(study)
    finish(optuna_study, value=1.0)
    lines = []
    show = EndedTrials(lines.append)
    show(Progress(study, optuna_study))
    assert lines == [], "it ended before this command"
    finish(optuna_study, value=2.0)
    show(Progress(study, optuna_study))
    show(Progress(study, optuna_study))
    assert len(lines) == 1
    assert lines[0].startswith("trial-001: eval_loss 2.0000 (learning_rate 0.001); 2 done")


class DyingWorker:
    """A worker that dies, after finishing a trial if `settles`; it ends without error when no trial is left."""

    def __init__(self, study, optuna_study, *, settles):
        self.stdin, self.stdout = io.StringIO(), io.StringIO()
        if settles and Progress(study, optuna_study).n_left:
            optuna_study.tell(optuna_study.ask(), 1.0)
        self.returncode = -9 if Progress(study, optuna_study).n_left else 0

    def poll(self):
        return self.returncode


@pytest.fixture
def supervised(study_file, monkeypatch):
    """Return a function that supervises such workers over six trials and returns the progress and the reasons."""

    def run(*, settles):
        file = study_file(vary={"learning_rate": [n / 1000 for n in range(1, 7)]})
        study = read_study(file)
        optuna_study = open_study(study)
        monkeypatch.setattr("helpers.studies.supervision._REFRESH_SECONDS", 0)
        monkeypatch.setattr(
            "helpers.studies.supervision._start", lambda *_: DyingWorker(study, optuna_study, settles=settles)
        )
        reasons = supervise(study, file, optuna_study, workers=1, show=lambda _: None)
        return Progress(study, optuna_study), reasons

    return run


def test_deaths_with_finished_trials_in_between_are_not_added_up(supervised):
    progress, reasons = supervised(settles=True)
    assert (len(progress.of_state("done")), reasons) == (6, [])


def test_workers_that_die_without_finishing_a_trial_are_not_restarted_forever(supervised):
    progress, reasons = supervised(settles=False)
    assert progress.n_left == 6
    assert "Workers keep ending with code -9" in reasons[0]


def test_workers_start_in_a_process_group_that_ctrl_c_does_not_reach(study, tmp_path, monkeypatch):
    started = {}
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.update(options))
    study.folder.mkdir(parents=True)
    supervision._start(study, tmp_path / "grid.yaml", 0, 0.0, {})
    assert (started["start_new_session"], started["creationflags"]) == (True, 512)
    assert started["encoding"] == "utf-8", "as the worker writes"


@pytest.mark.parametrize("threads", [None, "7"])
def test_workers_share_the_cores_unless_the_user_sets_the_threads(study_file, monkeypatch, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    file = study_file(vary={"learning_rate": [0.001, 0.002]})
    study = read_study(file)
    optuna_study = open_study(study)
    environments = []

    def start(*arguments):
        environments.append(arguments[-1]["OMP_NUM_THREADS"])
        return DyingWorker(study, optuna_study, settles=True)

    monkeypatch.setattr("helpers.studies.supervision._start", start)
    supervise(study, file, optuna_study, workers=2, show=lambda _: None)
    assert set(environments) == {threads or str(max(1, psutil.cpu_count(logical=False) // 2))}
