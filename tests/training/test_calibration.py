import pytest
import torch

from helpers.settings import TrainingSettings
from helpers.training import calibration, measuring
from helpers.training.calibration import SHIPPED, Calibration, add_measurements, find_calibration
from helpers.training.devices import find_card, this_processor
from helpers.training.fine_tuning import fine_tune
from helpers.training.plan import plan_run
from helpers.training.processes import one_training_at_a_time
from helpers.training.shape import GPT2Shape, read_shape
from tests.command_line import call
from tests.training import fake_machine

CARD = find_card("RTX 4070 Ti")
GPT2 = TrainingSettings(model_name_or_path="gpt2", block_size=1024, mixed_precision="no")


@pytest.fixture(autouse=True)
def processor(monkeypatch):
    """Return this machine's processor with a fixed speed instead of a measured one."""
    this_processor.cache_clear()
    monkeypatch.setattr("helpers.training.devices._product_tflops", lambda _: 0.1)
    yield this_processor()
    this_processor.cache_clear()


class TestFit:
    @pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 4}])
    def test_the_fit_predicts_the_time_of_an_unmeasured_run(self, processor, changes):
        fitted = add_measurements(processor, fake_machine.measurements())
        settings = GPT2.model_copy(update=changes)
        low, high = fitted.step_seconds(read_shape("gpt2"), settings, "no")
        assert (low + high) / 2 == pytest.approx(fake_machine.step_seconds(read_shape("gpt2"), settings), rel=0.02)
        assert high / low == pytest.approx(1.2 / 0.8, rel=0.05), "a narrow range"

    def test_a_measured_run_is_predicted_from_its_own_time(self, processor):
        shape, settings = fake_machine.RUNS[0]
        slow = fake_machine.measurement(shape, settings, step_seconds=77.0)
        assert add_measurements(processor, [slow]).step_seconds(shape, settings, "no") == pytest.approx((61.6, 92.4))

    def test_inconsistent_measurements_never_give_a_negative_time(self, processor):
        shape, settings = fake_machine.RUNS[0]
        longer = [settings.model_copy(update={"block_size": size}) for size in range(64, 224, 8)]
        slow = [
            fake_machine.measurement(shape, each, step_seconds=10.0 if each != longer[0] else 1.0) for each in longer
        ]
        low, high = add_measurements(processor, slow).step_seconds(
            shape, GPT2.model_copy(update={"block_size": 224}), "no"
        )
        assert low == 0 < high

    def test_the_fit_includes_the_memory_that_the_formula_misses(self, processor):
        constant, share = add_measurements(processor, fake_machine.measurements()).overhead("no")
        assert constant == pytest.approx(fake_machine.PROCESS_BYTES + fake_machine.UNSEEN_BYTES, rel=1e-4)
        assert share == pytest.approx(0, abs=1e-3)

    def test_too_few_measurements_or_a_different_precision_give_no_fit(self, processor):
        fitted = add_measurements(processor, fake_machine.measurements()[:3])
        assert fitted.step_seconds(read_shape("gpt2"), GPT2, "no") is None
        fitted = add_measurements(processor, fake_machine.measurements())
        assert fitted.step_seconds(read_shape("gpt2"), GPT2, "bf16") is None
        assert fitted.overhead("bf16") is None


def test_a_halved_batch_can_exceed_the_accumulation_limit_of_the_settings():
    halved = GPT2.model_copy(update={"gradient_accumulation_steps": 2048})
    measured = calibration.Measurement.of(read_shape("gpt2"), halved, precision="no", step_seconds=1, peak_bytes=1)
    assert measured.training[1].gradient_accumulation_steps == 2048


class TestPlan:
    def test_measurements_of_this_machine_are_mentioned_and_narrow_the_range(self, processor):
        before = plan_run(GPT2, card=processor)
        add_measurements(processor, fake_machine.measurements())
        after = plan_run(GPT2, card=processor)
        assert "measured" not in str(before)
        assert "measured on this machine" in str(after)
        assert after.seconds_are == "measured on this machine"
        assert after.epoch_seconds[1] / after.epoch_seconds[0] < before.epoch_seconds[1] / before.epoch_seconds[0]
        expected = fake_machine.peak_bytes(read_shape("gpt2"), GPT2, on_processor=True)
        assert after.memory.total_bytes == pytest.approx(expected, rel=0.01)

    def test_a_shipped_calibration_predicts_for_a_card_of_another_machine(self, monkeypatch, tmp_path):
        monkeypatch.setattr(calibration, "SHIPPED", tmp_path)
        posted = add_measurements(CARD, fake_machine.measurements(on_processor=False))
        (path,) = calibration._local().glob("*.json")
        path.rename(tmp_path / path.name)
        assert posted.device == "RTX 4070 Ti"
        assert posted.overhead("no", process_bytes=10**9) == posted.overhead("no"), "it is not on the card"
        assert "measured on RTX 4070 Ti" in str(plan_run(GPT2, card=CARD._replace(name="NVIDIA GeForce RTX 4070 Ti")))
        assert "measured" not in str(plan_run(GPT2, card=find_card("RTX 4090")))
        add_measurements(CARD, fake_machine.measurements(on_processor=False))
        assert "measured on this machine" in str(plan_run(GPT2, card=CARD)), "its own measurements come first"

    def test_runs_too_small_to_fill_a_gpu_do_not_predict_its_speed(self):
        gpt2, pocket = TrainingSettings.from_preset("rtx-4070-ti"), TrainingSettings()
        before, half = plan_run(gpt2, card=CARD), {"precision": "bf16", "step_seconds": 0.01}  # all kernel launches
        small = [fake_machine.measurement(*each, on_processor=False, **half) for each in fake_machine.RUNS]
        add_measurements(
            CARD, [*small, fake_machine.measurement(read_shape("pocket"), pocket, on_processor=False, **half)]
        )
        assert plan_run(gpt2, card=CARD).epoch_seconds == before.epoch_seconds, "no card is that fast"
        assert plan_run(pocket, card=CARD).pass_seconds == pytest.approx((0.009, 0.011)), "this run was measured"
        large = fake_machine.measurement(
            read_shape("gpt2"), gpt2, on_processor=False, precision="bf16", step_seconds=0.5
        )
        add_measurements(CARD, [large])
        assert "measured on this machine" in str(plan_run(gpt2, card=CARD))


@pytest.mark.parametrize(("n_threads", "end"), [(1, ", 1 thread"), (2, ", 2 threads")])
def test_a_processor_is_named_with_its_threads(monkeypatch, n_threads, end):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    assert calibration.processor_name().endswith(end)


class TestFile:
    def test_a_newer_measurement_of_the_same_run_replaces_the_older_one(self, processor):
        add_measurements(processor, fake_machine.measurements())
        shape, settings = fake_machine.RUNS[1]
        now = add_measurements(processor, [fake_machine.measurement(shape, settings, step_seconds=5.0)])
        assert len(now.measurements) == len(fake_machine.RUNS)
        assert now.measurements[-1].step_seconds == 5.0

    def test_measurements_made_with_another_pytorch_are_dropped(self, processor, monkeypatch):
        add_measurements(processor, fake_machine.measurements())
        monkeypatch.setattr(torch, "__version__", "99.0")
        assert len(add_measurements(processor, fake_machine.measurements()[:1]).measurements) == 1

    @pytest.mark.parametrize(
        ("written", "instead"),
        [
            ('"device"', '"version": 2, "device"'),
            ('"n_layer": 1', '"n_layer": 0'),
            ('"n_layer": 1', '"n_layer": null'),
            ('"n_layer": 1', '"n_kv_heads": 1'),
            ('"block_size": 64', '"block_size": "x"'),
            ('"block_size": 64', '"blocks": 64'),
            ('"peak_bytes": 9', '"peak_bytes": 0'),
            ('"step_seconds": 7.0', '"step_seconds": Infinity'),
            ("{", "\udcff"),
        ],
    )
    def test_a_damaged_file_or_another_version_is_ignored_with_a_warning(self, processor, written, instead):
        settings = GPT2.model_copy(update={"block_size": 64})
        measured = fake_machine.measurement(
            GPT2Shape(1, 32, 2), settings, step_seconds=7.0, peak_bytes=9, process_bytes=0
        )
        add_measurements(processor, [measured] * calibration._MIN_MEASUREMENTS)
        (path,) = calibration._local().glob("*.json")
        content = path.read_text(encoding="utf-8")
        assert written in content
        path.write_bytes(content.replace(written, instead, 1).encode("utf-8", "surrogateescape"))
        with pytest.warns(UserWarning, match="is not a calibration of this version"):
            assert "measured" not in str(plan_run(GPT2, card=processor))
        assert len(add_measurements(processor, [measured]).measurements) == 1, "a new file replaces it"

    @pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=str)
    def test_each_shipped_file_gives_a_prediction(self, path):
        shipped = Calibration.model_validate_json(path.read_text(encoding="utf-8"))
        precision = shipped.measurements[-1].precision
        assert shipped.step_seconds(read_shape("gpt2"), GPT2, precision)[0] > 0
        assert shipped.overhead(precision)[0] >= 0


def test_calibrate_prints_and_stores_its_measurements(processor, monkeypatch):
    tiny = GPT2Shape(1, 32, 2, vocab_size=500, n_positions=64)
    monkeypatch.setattr(measuring, "_RUNS_TO_MEASURE", [(tiny, 16, 2), (tiny, 32, 1)])
    result = call("calibrate", "--json", "--seconds", "0")
    (measured,) = Calibration.model_validate_json(result.stdout).measurements
    assert measured.training[0] == tiny
    assert 0 < measured.step_seconds < 10
    assert 0 < measured.process_bytes <= measured.peak_bytes
    found, where = find_calibration(processor)
    assert (found.measurements, where) == ([measured], "this machine")
    assert "1 x 32" in str(found)


@pytest.mark.parametrize("before", [0, 100])  # a card is empty at first
def test_memory_left_by_a_run_does_not_count_as_process_memory_of_the_next(processor, monkeypatch, before):
    left = iter([before, 180, 250])
    fake = lambda *training: fake_machine.measurement(*training, process_bytes=next(left))  # noqa: E731
    monkeypatch.setattr(measuring, "measure", fake)
    monkeypatch.setattr(measuring, "_RUNS_TO_MEASURE", [(GPT2Shape(1, 32, 2), 16, batch) for batch in (1, 2, 3)])
    assert [row.process_bytes for row in measuring.calibrate().measurements] == [before] * 3


@pytest.mark.parametrize("attn_pdrop", [0.0, 0.2])
def test_measuring_uses_the_attention_dropout_of_the_settings(monkeypatch, attn_pdrop):
    new_trainer, trained = measuring.new_trainer, []
    monkeypatch.setattr(
        measuring,
        "new_trainer",
        lambda *parts, model, **how: trained.append(model) or new_trainer(*parts, model=model, **how),
    )
    tiny = GPT2Shape(1, 32, 2, vocab_size=500, n_positions=64)
    measuring.measure(tiny, TrainingSettings(block_size=16, attn_pdrop=attn_pdrop))
    (model,) = trained
    assert model.transformer.h[0].attn.attn_dropout.p == attn_pdrop


def test_nothing_is_measured_during_a_training_run():
    with one_training_at_a_time(), pytest.raises(UserWarning, match="Another run is being trained in this kernel"):
        measuring.measure(GPT2Shape(1, 32, 2), TrainingSettings())


def test_steps_with_fewer_blocks_than_a_batch_are_not_measured(tiny_settings, processor):
    run = fine_tune(tiny_settings.model_copy(update={"gradient_accumulation_steps": 64, "num_train_epochs": 3}))
    assert run.facts["step_seconds"] > 0
    assert find_calibration(processor) is None


def test_a_finished_run_adds_its_own_measurement(tiny_run, processor):
    found, _ = find_calibration(processor)
    assert found.measurements[-1].step_seconds == tiny_run.facts["step_seconds"]
    assert found.measurements[-1].peak_bytes == tiny_run.facts["peak_bytes"]
