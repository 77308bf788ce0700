import pytest
from filelock import FileLock
from optuna.trial import TrialState

from helpers.settings import SettingsError
from helpers.studies.queue import (
    is_superfluous,
    open_study,
    requeue_interrupted,
    suggest_values,
    trial_lock,
    trials_of,
)
from helpers.studies.study_file import read_study
from helpers.training.study_storage import JOURNAL

RATES = {"low": 1e-5, "high": 1e-2}


def test_opening_a_study_repeatedly_queues_every_point_once(study_file):
    study = read_study(study_file())
    for _ in range(3):
        optuna_study = open_study(study)
    assert [trial.state for trial in optuna_study.get_trials()] == [TrialState.WAITING] * 4
    assert [trial.system_attrs["fixed_params"] for trial in optuna_study.get_trials()] == study.points


def test_a_larger_budget_adds_points_to_a_study(study_file):
    vary = {"learning_rate": RATES}
    open_study(read_study(study_file(vary=vary, budgets={"trials": 2})))
    optuna_study = open_study(read_study(study_file(vary=vary, budgets={"trials": 5})))
    assert [trial.user_attrs["point"] for trial in optuna_study.get_trials()] == [0, 1, 2, 3, 4]


def test_a_different_study_of_the_same_name_is_refused(study_file):
    open_study(read_study(study_file()))
    with pytest.raises(SettingsError, match=r"was started with vary = .*choose another `study` name"):
        open_study(read_study(study_file(vary={"learning_rate": [0.005]})))


def test_a_study_named_like_a_run_is_refused(study_file, runs):
    (runs / "grid").mkdir(parents=True)
    (runs / "grid/settings.json").write_text("{}")
    with pytest.raises(SettingsError, match="is the folder of a run"):
        open_study(read_study(study_file()))


def test_a_search_stays_within_its_ranges_and_is_reproducible(study_file, runs):
    ranges = {
        "learning_rate": RATES,
        "per_device_train_batch_size": {"low": 2, "high": 8},
        "lr_scheduler_type": ["linear", "cosine"],
    }
    chosen = []
    for name in ("a", "b"):
        study = read_study(study_file(study=name, vary=ranges, budgets={"trials": 6}, notebooks=["03"]))
        optuna_study = open_study(study)
        taken = [optuna_study.ask() for _ in range(6)]
        chosen.append([suggest_values(study, trial) for trial in taken])
    assert chosen[0] == chosen[1]
    assert all(1e-5 <= point["learning_rate"] <= 1e-2 for point in chosen[0])
    assert {type(point["per_device_train_batch_size"]) for point in chosen[0]} == {int}
    assert len({point["learning_rate"] for point in chosen[0]}) == 6, "workers choose different points"


def test_a_trial_whose_worker_died_is_requeued_with_its_values(study_file):
    study = read_study(study_file(vary={"learning_rate": RATES}, budgets={"trials": 1}))
    optuna_study = open_study(study)
    before = suggest_values(study, optuna_study.ask())
    requeue_interrupted(study, optuna_study)  # nobody holds the trial's lock
    again = optuna_study.ask()
    assert again.user_attrs["point"] == 0
    assert suggest_values(study, again) == before
    assert not is_superfluous(optuna_study, again)


def test_a_trial_whose_worker_is_alive_is_not_requeued(study_file):
    study = read_study(study_file())
    optuna_study = open_study(study)
    optuna_study.ask()
    with trial_lock(study.folder, 0):
        requeue_interrupted(study, optuna_study)
    assert [trial.state for trial in optuna_study.get_trials()].count(TrialState.RUNNING) == 1


def test_a_failed_trial_without_a_recorded_error_is_requeued_once(study_file):
    study = read_study(study_file())
    optuna_study = open_study(study)
    optuna_study.tell(optuna_study.ask().number, state=TrialState.FAIL)  # and then the worker was killed
    requeue_interrupted(study, optuna_study)
    requeue_interrupted(study, optuna_study)
    assert [trial.state for trial in trials_of(study, optuna_study)] == [TrialState.WAITING] * 4
    assert len(optuna_study.get_trials()) == 5


def test_a_trial_that_failed_with_an_error_is_not_requeued(study_file):
    study = read_study(study_file())
    optuna_study = open_study(study)
    trial = optuna_study.ask()
    trial.set_user_attr("error", "broken")
    optuna_study.tell(trial, state=TrialState.FAIL)
    requeue_interrupted(study, optuna_study)
    assert len(optuna_study.get_trials()) == 4


def test_a_point_queued_by_two_machines_runs_once(study_file):
    study = read_study(study_file(vary={"learning_rate": [0.001]}))
    optuna_study = open_study(study)
    optuna_study.enqueue_trial({"learning_rate": 0.001}, user_attrs={"point": 0})
    first, second, beyond = optuna_study.ask(), optuna_study.ask(), optuna_study.ask()
    assert [is_superfluous(optuna_study, trial) for trial in (first, second, beyond)] == [False, True, True]


@pytest.mark.parametrize("torn", [b'{"op_code": 4, "wor', b"\x00\x00"])
def test_a_truncated_journal_can_be_continued(study_file, torn):
    study = read_study(study_file())
    open_study(study)
    with (study.folder / JOURNAL).open("ab") as file:
        file.write(torn)
    optuna_study = open_study(study)
    assert len(optuna_study.get_trials()) == 4
    optuna_study.ask()
    assert open_study(study).get_trials()[0].state == TrialState.RUNNING


def test_a_half_written_line_does_not_stop_workers_with_the_journal_open(study_file):
    study = read_study(study_file())
    optuna_study = open_study(study)
    with (study.folder / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    trial = optuna_study.ask()
    assert open_study(study).get_trials()[trial.number].state == TrialState.RUNNING


def test_a_lock_file_left_by_a_killed_process_does_not_block(study_file):
    study = read_study(study_file())
    open_study(study)
    (study.folder / f"{JOURNAL}.lock").touch()  # left by a killed process
    assert len(open_study(study).get_trials()) == 4
    with FileLock(study.folder / f"{JOURNAL}.lock"):
        pass
