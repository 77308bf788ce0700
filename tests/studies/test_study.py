import pytest

from helpers import files
from helpers.settings import SettingsError, run_folder
from helpers.studies.study import Range
from helpers.studies.study_file import read_study


def test_a_grid_has_a_point_for_each_combination_in_the_order_of_the_file(study_file):
    study = read_study(study_file())
    assert study.is_grid
    assert [tuple(point.values()) for point in study.points] == [(0.001, 0.0), (0.001, 0.1), (0.002, 0.0), (0.002, 0.1)]


def test_a_trial_budget_cuts_the_grid(study_file):
    assert len(read_study(study_file(budgets={"trials": 3})).points) == 3


def test_a_study_whose_trial_paths_are_too_long_for_windows_is_refused_only_there(study_file, runs, monkeypatch):
    monkeypatch.setattr(files, "long_paths", lambda: False)
    monkeypatch.setenv("COURSE_RUNS", "/r" + "x" * 155)
    assert run_folder("grid").name == "grid"  # as a run it would fit
    with pytest.raises(SettingsError, match="trial-000-rate-1 is too deep"):
        read_study(study_file())
    for answer in (True, None):  # long paths are enabled; not Windows
        monkeypatch.setattr(files, "long_paths", lambda answer=answer: answer)
        assert read_study(study_file()).points


def test_a_range_turns_the_study_into_a_search_on_the_settings_scale(study_file):
    study = read_study(study_file(vary={"learning_rate": {"low": 1e-5, "high": 1e-3}, "weight_decay": [0.0, 0.1]}))
    assert not study.is_grid
    assert study.vary["learning_rate"] == Range(low=1e-5, high=1e-3, scale="log")
    assert study.points == [{}] * 20
    assert len(study.corners) == 4


def test_the_essence_of_a_study_matches_old_journals(study_file, cheap_notebook):
    vary = {"learning_rate": {"low": 1e-5, "high": "1e-2"}, "weight_decay": [0, "1e-1"], "seed": [1]}
    study = read_study(study_file(vary=vary, settings={"num_train_epochs": 2}, notebooks=[cheap_notebook, 3]))
    assert study.essence == {
        "preset": "pocket",
        "settings": {"num_train_epochs": 2.0},
        "vary": {
            "learning_rate": {"low": 1e-5, "high": 1e-2, "scale": "log"},
            "weight_decay": [0.0, 0.1],
            "seed": [1],
        },
        "notebooks": [cheap_notebook, "03"],
        "optimise": "eval_loss",
    }
