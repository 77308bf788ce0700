import shutil

import optuna
import pytest
import yaml

from helpers.settings import run_folder
from helpers.studies.queue import open_study, place_of, requeue_interrupted, suggest_values
from helpers.studies.study_file import read_study
from helpers.training.fine_tuning import fine_tune
from helpers.training.pruning import PLACE, TrialPrunedError, pruning_callback
from helpers.training.run_files import read_history


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "rates.yaml"
    path.write_text(
        yaml.safe_dump({"vary": {"learning_rate": [0.1, 0.08, 0.06, 0.04, 0.02]}, "notebooks": ["03"], "prune": True})
    )
    return read_study(path)


def test_without_a_study_there_is_no_callback(monkeypatch):
    monkeypatch.delenv(PLACE, raising=False)
    assert pruning_callback("tiny") is None
    monkeypatch.setenv(PLACE, "")
    assert pruning_callback("tiny") is None


def take_trial(study, opened, monkeypatch):
    trial = opened.ask()
    suggest_values(study, trial)
    monkeypatch.setenv(PLACE, place_of(study, trial))
    return trial


def test_other_runs_of_the_same_notebook_report_nothing(study, monkeypatch):
    take_trial(study, open_study(study), monkeypatch)
    assert pruning_callback("trial-000") is not None
    assert pruning_callback("trial-000-rate-1") is None


def settings_of(tiny_settings, number):
    return tiny_settings.model_copy(update={"run": f"trial-{number:03d}", "eval_steps": 2})


def test_each_validation_but_the_last_is_reported_with_the_share_of_text_read(study, monkeypatch, tiny_settings):
    opened = open_study(study)
    take_trial(study, opened, monkeypatch)
    fine_tune(settings_of(tiny_settings, 0))
    history = {row["step"]: row["eval_loss"] for row in read_history(run_folder("trial-000")) if "eval_loss" in row}
    reported = opened.get_trials()[0].intermediate_values
    last = max(history)
    assert list(reported.values()) == [loss for step, loss in history.items() if step < last]
    assert all(0 < share < 1000 * tiny_settings.num_train_epochs for share in reported)


def test_a_trial_that_falls_behind_is_pruned(study, monkeypatch, tiny_settings):
    opened = open_study(study)
    others = dict.fromkeys(range(2001), 1.0)  # at every share of the text
    for _ in range(4):  # the pruner waits for this many
        opened.add_trial(optuna.create_trial(value=1.0, intermediate_values=others))
    trial = take_trial(study, opened, monkeypatch)
    with pytest.raises(TrialPrunedError, match=r"validation loss \d\.\d+ at step 2 is worse than the median"):
        fine_tune(settings_of(tiny_settings, 0))
    frozen = opened.get_trials()[trial.number]
    assert frozen.user_attrs["pruned"] == 2
    assert frozen.state == optuna.trial.TrialState.RUNNING, "its worker records the end"


def test_a_restarted_trial_reports_each_loss_once(study, monkeypatch, tiny_settings):
    opened = open_study(study)
    take_trial(study, opened, monkeypatch)
    settings = settings_of(tiny_settings, 0)
    fine_tune(settings)
    before = opened.get_trials()[0].intermediate_values
    requeue_interrupted(study, opened)
    shutil.rmtree(run_folder(settings.run))  # as if killed before the first checkpoint
    *_, again = (take_trial(study, opened, monkeypatch) for _ in range(5))  # queued after the other points
    fine_tune(settings)
    assert opened.get_trials()[again.number].intermediate_values == before
