import io
from datetime import datetime, timedelta

import pytest
from optuna.trial import TrialState
from rich.console import Console

from helpers.studies.queue import open_study
from helpers.studies.screen import Lines, draw, headline
from helpers.studies.study_file import read_study
from helpers.studies.supervise import standing


@pytest.fixture
def study(study_file):
    return read_study(study_file())


def finish(opened, value=None, error=None):
    trial = opened.ask()
    trial.suggest_categorical("learning_rate", [0.001, 0.002])
    if error:
        trial.set_user_attr("error", error)
        return opened.tell(trial, state=TrialState.FAIL)
    return opened.tell(trial, value)


def drawn(stand):
    console = Console(file=io.StringIO(), width=120)
    console.print(draw(stand))
    return console.file.getvalue()


def test_the_screen_tells_done_running_failed_best_and_time_left(study):
    opened = open_study(study)
    finish(opened, value=2.5)
    finish(opened, error="a cell is broken")
    opened.ask()
    stand = standing(study, opened)
    assert headline(stand).startswith("1 done, 1 running, 1 waiting, 1 failed of 4; time left: about 1 min")
    assert (stand.n_left, stand.best.value) == (2, 2.5)
    text = drawn(stand)
    assert "best so far  trial-000: eval_loss 2.5000 (learning_rate 0.001)" in text
    assert "trial-001: a cell is broken" in text
    assert "trial-002: running" in text
    assert "trial.log" in text


def test_a_trial_that_was_broken_off_waits(study):
    opened = open_study(study)
    opened.tell(opened.ask(), state=TrialState.FAIL)  # as when its worker is stopped
    stand = standing(study, opened)
    assert headline(stand).startswith("0 done, 0 running, 4 waiting of 4")
    assert stand.n_left == 4
    lines = []
    show = Lines(lines.append)
    show(standing(study, open_study(study)))
    opened.tell(opened.ask(), state=TrialState.FAIL)
    show(standing(study, opened))
    assert lines == []


def test_time_left_is_not_known_before_a_trial_is_done(study):
    stand = standing(study, open_study(study))
    assert stand.seconds_left is None
    assert stand.best is None
    assert "0 done, 0 running, 4 waiting of 4; time left: known after the first trial" in drawn(stand)


def test_time_left_is_shared_by_the_workers(study):
    opened = open_study(study)
    finish(opened, value=1.0)
    opened.ask()
    trials = opened.get_trials(deepcopy=False)
    trials[0].datetime_start = trials[0].datetime_complete - timedelta(hours=2)
    trials[1].datetime_start = datetime.now() - timedelta(hours=1)
    assert standing(study, opened).seconds_left == pytest.approx(5 * 3600, abs=5)
    opened.ask()
    trials = opened.get_trials(deepcopy=False)
    trials[0].datetime_start = trials[0].datetime_complete - timedelta(hours=2)
    trials[1].datetime_start = trials[2].datetime_start = datetime.now() - timedelta(hours=1)
    assert standing(study, opened).seconds_left == pytest.approx(2 * 3600, abs=5)
    assert "about 2 h 00 min" in headline(standing(study, opened))


def test_a_settled_study_has_no_time_left(study_file):
    study = read_study(study_file(vary={"learning_rate": [0.001]}))
    opened = open_study(study)
    finish(opened, value=1.0)
    assert headline(standing(study, opened)) == "1 done, 0 running of 1; time left: none"


def test_where_there_is_no_terminal_each_end_is_a_line(study):
    opened = open_study(study)
    finish(opened, value=1.0)
    lines = []
    show = Lines(lines.append)
    show(standing(study, opened))
    assert lines == [], "what ended before this command"
    finish(opened, value=2.0)
    show(standing(study, opened))
    show(standing(study, opened))
    assert len(lines) == 1
    assert lines[0].startswith("trial-001: eval_loss 2.0000 (learning_rate 0.001); 2 done")
