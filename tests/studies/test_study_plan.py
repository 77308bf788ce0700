import pytest

from helpers.display import duration_text
from helpers.settings import SettingsError
from helpers.studies.study_file import find_study, read_study
from helpers.studies.study_plan import folder_bytes, kept_bytes, plan_study, trial_bytes
from helpers.training.devices import GraphicsCard, find_card
from helpers.training.run_files import checkpoint_bytes, model_bytes


@pytest.fixture(autouse=True)
def a_large_disk(monkeypatch):
    """Plan for a large disk, however full this machine's disk is."""
    monkeypatch.setattr("helpers.studies.study_plan.free_bytes", lambda folder: 2**42)


def study_on_gpt2(study_file, **changes):
    settings = {"num_train_epochs": 1.0, "gradient_accumulation_steps": 1}
    vary = {"per_device_train_batch_size": [4, 512], "learning_rate": [1e-4, 1e-3]}
    return read_study(
        study_file(**{"preset": "rtx-4070-ti", "settings": settings, "vary": vary, "notebooks": ["03"], **changes})
    )


def test_hours_are_the_sum_over_all_points(study_file):
    study = study_on_gpt2(study_file, vary={"learning_rate": [1e-4, 1e-3, 2e-3]})
    planned = plan_study(study, find_card("RTX 4070 Ti"))
    low, high = planned.plans[0].seconds
    assert planned.hours == pytest.approx((3 * low / 3600, 3 * high / 3600))
    assert planned.refusals == []
    assert "predicted for one RTX 4070 Ti" in str(planned)


def test_the_description_names_the_remaining_trials_their_time_and_the_budgets(study_file):
    vary, budgets = {"learning_rate": [1e-4, 1e-3, 2e-3]}, {"hours": 5, "disk_gib": 900}
    study = study_on_gpt2(study_file, vary=vary, budgets=budgets)
    planned = plan_study(study, find_card("RTX 4070 Ti"), n_left=2)
    low, high = (duration_text(3600 * hours) for hours in planned.hours)
    for words in (
        "3, the points of a grid, 1 of them settled already",
        "learning_rate: 0.0001, 0.001, 0.002",
        f"{low} to {high}, predicted for one RTX 4070 Ti",
        "; none starts after 5 h",
        ", budget 900 GiB",
    ):
        assert words in str(planned)
    assert "pauses" not in str(planned)


def test_no_time_is_predicted_for_a_card_of_unknown_speed(study_file):
    planned = plan_study(study_on_gpt2(study_file), GraphicsCard("a card", 12 * 2**30, None, None))
    assert planned.hours is None
    assert "not predicted: the peak of one a card is not known" in str(planned)


def test_a_trial_may_need_the_disk_space_of_the_largest_point(study_file):
    study = study_on_gpt2(study_file, vary={"lora_r": [0, 8]})
    large, small = (plan.disk_bytes for plan in plan_study(study, None).plans)
    assert trial_bytes(study) == large > small


def test_a_tiny_fraction_of_an_epoch_takes_one_step(study_file):
    study = study_on_gpt2(study_file, vary={"learning_rate": [1e-4, 1e-3]}, settings={"num_train_epochs": 1e-6})
    (plan, _) = plan_study(study, find_card("RTX 4070 Ti")).plans
    assert (plan.steps, plan.n_validations) == (1, 1)
    assert plan.training_seconds == pytest.approx([seconds / plan.steps_per_epoch for seconds in plan.epoch_seconds])


def test_points_that_do_not_fit_the_gpu_are_refused_by_name(study_file):
    refusals = plan_study(study_on_gpt2(study_file), find_card("RTX 4070 Ti")).refusals
    assert len(refusals) == 2
    assert refusals[0].startswith("trial-002 (per_device_train_batch_size 512, learning_rate 0.0001) does not fit")


def test_varying_a_setting_without_effect_is_noted(study_file):
    for rank, is_noted in ((0, True), (8, False)):
        changes = {"notebooks": [], "vary": {"lora_alpha": [8, 16]}, "settings": {"lora_r": rank}}
        shown = str(plan_study(read_study(study_file(**changes)), None))
        assert ("no effect  lora_alpha = 8 has no effect with lora_r = 0." in shown) == is_noted
        assert ("no effect" in shown) == is_noted


def test_a_search_is_refused_if_its_largest_point_does_not_fit(study_file):
    over = {"per_device_train_batch_size": {"low": 4, "high": 512}}
    planned = plan_study(study_on_gpt2(study_file, vary=over), find_card("RTX 4070 Ti"))
    assert planned.refusals[0].startswith("A trial (per_device_train_batch_size 512) does not fit")


def test_without_a_gpu_the_time_is_predicted_for_this_processor_and_memory_is_not(study_file, monkeypatch):
    slow = GraphicsCard("this processor", 2**30, 0.4, 0.2)
    monkeypatch.setattr("helpers.studies.study_plan.this_processor", lambda: slow)
    planned = plan_study(study_on_gpt2(study_file), None, workers=4)
    assert planned.hours[0] > 1
    assert planned.refusals == []
    assert "predicted for this processor, one trial after the other" in str(planned)


def test_workers_that_do_not_fit_the_gpu_together_are_refused(study_file):
    study = study_on_gpt2(study_file, vary={"learning_rate": [1e-4, 2e-4, 3e-4, 4e-4]})
    card = find_card("RTX 4070 Ti")
    one = plan_study(study, card).plans[0].memory.total_bytes
    held = {n: n * one + (n - 1) * 2**29 for n in (1, 2, 3, 4)}
    max_workers = max(n for n, size in held.items() if size <= card.usable_bytes)
    assert 1 < max_workers < 4, "otherwise this test proves nothing"
    assert plan_study(study, card, workers=max_workers).refusals == []
    (refusal,) = plan_study(study, card, workers=4).refusals
    assert refusal.startswith(f"4 workers hold {held[4] / 2**30:.1f} GiB together")
    assert f"--workers {max_workers} fits" in refusal
    assert plan_study(study, card, workers=4, n_left=1).refusals == [], "only one worker runs at a time"


def test_grid_workers_need_the_largest_trials_and_search_workers_the_largest_each(study_file):
    card = find_card("RTX 4070 Ti")
    sizes = [1, 4]
    grid = plan_study(study_on_gpt2(study_file, vary={"per_device_train_batch_size": sizes}), card, workers=2)
    over = {"per_device_train_batch_size": {"low": 1, "high": 4}}
    search = plan_study(study_on_gpt2(study_file, vary=over), card, workers=2)
    small, large = (plan.memory.total_bytes for plan in grid.plans)
    assert grid.memory_bytes(2) == small + large + 2**29
    assert search.memory_bytes(2) == 2 * large + 2**29


def test_each_worker_needs_disk_for_the_trial_it_runs(study_file):
    study = study_on_gpt2(study_file, keep_checkpoints=False)
    one, two = (plan_study(study, None, workers=workers) for workers in (1, 2))
    assert two.disk_bytes - one.disk_bytes == one.next_bytes - kept_bytes(study, one.plans[0])


def test_with_early_stopping_a_trial_keeps_two_checkpoints(study_file):
    settings = {"save_total_limit": 1, "early_stopping_patience": 3}
    study = study_on_gpt2(study_file, settings=settings, keep_checkpoints=True)
    (plan, *_) = plan_study(study, None).plans
    run = plan.shape, plan.settings
    assert kept_bytes(study, plan) == 2 * checkpoint_bytes(*run) + model_bytes(*run)


def test_a_started_study_continues_while_its_next_trial_fits_on_the_disk(study_file, monkeypatch):
    study = study_on_gpt2(study_file)
    room = plan_study(study, None).next_bytes
    monkeypatch.setattr("helpers.studies.study_plan.free_bytes", lambda folder: room)
    assert "The trials will write" in plan_study(study, None).refusals[0]
    assert plan_study(study, None, n_left=3).refusals == []
    assert "pauses when it is full" in str(plan_study(study, None, n_left=3))
    monkeypatch.setattr("helpers.studies.study_plan.free_bytes", lambda folder: room - 1)
    assert "The next trial takes" in plan_study(study, None, n_left=3).refusals[0]
    assert plan_study(study, None, n_left=0).refusals == []


def test_a_full_disk_is_refused_even_for_an_unknown_model(study_file, monkeypatch):
    monkeypatch.setattr("helpers.studies.study_plan.free_bytes", lambda folder: 0)
    study = study_on_gpt2(study_file, settings={"model_name_or_path": "someone/gpt2-of-theirs"})
    assert "The next trial takes 256 MiB" in plan_study(study, None).refusals[0]


def test_a_study_larger_than_the_disk_is_refused_unless_it_keeps_no_checkpoints(study_file, monkeypatch):
    monkeypatch.setattr("helpers.studies.study_plan.free_bytes", lambda folder: 8 * 2**30)
    kept, unkept = (plan_study(study_on_gpt2(study_file, keep_checkpoints=keep), None) for keep in (True, False))
    assert "set keep_checkpoints: false" in kept.refusals[0]
    assert unkept.refusals == []
    assert unkept.disk_bytes < kept.disk_bytes / 2


def test_a_disk_budget_smaller_than_one_trial_is_refused(study_file):
    planned = plan_study(study_on_gpt2(study_file, budgets={"disk_gib": 1}), None)
    assert "does not fit into budgets.disk_gib = 1" in planned.refusals[-1]


def test_a_point_that_cannot_be_trained_is_refused(study_file):
    measured = {"notebooks": ["03", "04"], "optimise": "bits_per_byte"}
    study = study_on_gpt2(study_file, preset="pocket", vary={"block_size": [64, 512]}, **measured)
    with pytest.raises(SettingsError, match="trial-001 of study 'grid' cannot run: block_size = 512 is longer than"):
        plan_study(study, None)


def test_folder_bytes_counts_nested_files_and_a_missing_folder_as_0(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(b"x" * 10)
    assert folder_bytes(tmp_path) == 10
    assert folder_bytes(tmp_path / "none") == 0


def test_the_shipped_studies_fit_their_gpu():
    card = find_card("RTX 4070 Ti")
    assert [plan_study(read_study(find_study(name)), card).too_large for name in ("rates", "search")] == [[], []]


def test_a_model_that_is_not_downloaded_yet_has_no_plan_and_is_not_refused(study_file):
    settings = {"model_name_or_path": "someone/gpt2-of-theirs"}
    planned = plan_study(study_on_gpt2(study_file, settings=settings), find_card("RTX 4070 Ti"))
    assert planned.refusals == []
    assert "not predicted: the model's shape is not known before its download" in str(planned)


def test_a_missing_text_or_model_is_refused_unless_no_trial_is_left(study_file):
    for changes in ({"source": "nowhere.txt"}, {"model_name_or_path": "./nowhere"}):
        study = read_study(study_file(notebooks=["03"], settings=changes))
        with pytest.raises(SettingsError, match="is not there"):
            plan_study(study, None)
    study = read_study(study_file(notebooks=["03"], settings={"source": "nowhere.txt"}))
    assert plan_study(study, None, n_left=0).refusals == []
