import pytest

from helpers.cards import find_card
from helpers.settings import SettingsError
from helpers.sweep.forecast import folder_bytes, forecast
from helpers.sweep.study_file import find_study, read_study


def study_on_gpt2(study_file, **changes):
    settings = {"num_train_epochs": 1.0, "gradient_accumulation_steps": 1}
    vary = {"per_device_train_batch_size": [4, 512], "learning_rate": [1e-4, 1e-3]}
    return read_study(
        study_file(**{"preset": "rtx-4070-ti", "settings": settings, "vary": vary, "notebooks": ["03"], **changes})
    )


def test_hours_are_the_planners_for_all_points(study_file):
    study = study_on_gpt2(study_file, vary={"learning_rate": [1e-4, 1e-3, 2e-3]})
    planned = forecast(study, find_card("RTX 4070 Ti"))
    low, high = planned.plans[0].epoch_seconds
    assert planned.hours == pytest.approx((3 * low / 3600, 3 * high / 3600))
    assert planned.refusals == []
    assert "predicted for one RTX 4070 Ti" in str(planned)


def test_points_that_the_card_does_not_hold_are_refused_by_name(study_file):
    refusals = forecast(study_on_gpt2(study_file), find_card("RTX 4070 Ti")).refusals
    assert len(refusals) == 2
    assert refusals[0].startswith("trial-002 (per_device_train_batch_size 512, learning_rate 0.0001) does not fit")


def test_a_search_is_refused_for_the_largest_it_may_choose(study_file):
    over = {"per_device_train_batch_size": {"low": 4, "high": 512}}
    planned = forecast(study_on_gpt2(study_file, vary=over), find_card("RTX 4070 Ti"))
    assert planned.refusals[0].startswith("A trial (per_device_train_batch_size 512) does not fit")


def test_without_a_card_neither_memory_nor_time_is_predicted(study_file):
    planned = forecast(study_on_gpt2(study_file), None)
    assert planned.hours is None
    assert planned.too_large == []
    assert "not predicted on a CPU" in str(planned)


def test_a_study_larger_than_the_disk_is_refused_and_keeps_less_without_checkpoints(study_file, monkeypatch):
    monkeypatch.setattr("helpers.sweep.forecast.free_bytes", lambda folder: 8 * 2**30)
    kept, unkept = (forecast(study_on_gpt2(study_file, keep_checkpoints=keep), None) for keep in (True, False))
    assert "set keep_checkpoints: false" in kept.refusals[0]
    assert unkept.refusals == []
    assert unkept.disk_bytes < kept.disk_bytes / 2


def test_a_disk_budget_below_one_trial_is_refused(study_file):
    planned = forecast(study_on_gpt2(study_file, budgets={"disk_gib": 1}), None)
    assert "Not one more trial" in planned.refusals[-1]


def test_a_point_that_cannot_be_is_refused(study_file):
    measured = {"notebooks": ["03", "04"], "optimise": "bits_per_byte"}
    study = study_on_gpt2(study_file, preset="pocket", vary={"block_size": [64, 512]}, **measured)
    with pytest.raises(SettingsError, match="trial-001 of study 'grid' cannot be: block_size = 512 is longer than"):
        forecast(study, None)


def test_a_folder_is_measured_with_all_it_holds(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(b"x" * 10)
    assert folder_bytes(tmp_path) == 10
    assert folder_bytes(tmp_path / "none") == 0


def test_the_shipped_studies_fit_the_card_they_are_for():
    card = find_card("RTX 4070 Ti")
    assert [forecast(read_study(find_study(name)), card).too_large for name in ("rates", "search")] == [[], []]


def test_a_model_that_must_be_downloaded_first_is_run_without_a_plan(study_file):
    settings = {"model_name_or_path": "someone/gpt2-of-theirs"}
    planned = forecast(study_on_gpt2(study_file, settings=settings), find_card("RTX 4070 Ti"))
    assert planned.refusals == []
    assert "not predicted: the model's shape is not known before its download" in str(planned)
