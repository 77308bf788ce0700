import re

import pytest
import torch
from click.testing import CliRunner
from transformers import GPT2Config, TrainingArguments

from helpers.__main__ import main
from helpers.display import GIB, duration_text, size_text
from helpers.model import load_model
from helpers.paths import ASSETS
from helpers.settings import SettingsError, TrainingSettings
from helpers.training.devices import CARDS, GraphicsCard, find_card, this_processor
from helpers.training.memory import evaluation_bytes
from helpers.training.plan import plan_run, predict_on_this_machine
from helpers.training.run_files import checkpoint_bytes, model_bytes
from helpers.training.shape import operations_per_token, read_shape

CARD_OF = {8: "RTX 4070 Laptop", 12: "RTX 4070 Ti", 16: "RTX 4070 Ti SUPER"}  # GB -> the card to plan for
SMALL = GraphicsCard("a small card", 5 * GIB, 20.0, 10.0)
PROCESSOR = SMALL._replace(name="a processor", is_processor=True)


def gpt2(**changes):
    return TrainingSettings(**{"model_name_or_path": "gpt2", "block_size": 1024} | changes)


@pytest.mark.parametrize(
    ("preset", "card"),
    [
        ("rtx-4070-ti", "RTX 4070 Ti"), ("rtx-4070-ti", "RTX 4070"), ("rtx-4070-ti", "RTX 3060 12 GB"),
        ("8gb", "RTX 4070 Laptop"), ("16gb", "RTX 4070 Ti SUPER"), ("16gb", "RTX 4060 Ti 16 GB"), ("16gb", "T4"),
        ("guide", "RTX 4070 Ti"), ("pocket", "RTX 4070 Laptop"),
    ],
)  # fmt: skip
def test_a_preset_fits_its_card(preset, card):
    plan = plan_run(TrainingSettings.from_preset(preset), card=find_card(card))
    assert plan.fits
    assert plan.headroom_bytes > 0.1 * plan.card.usable_bytes
    assert plan.verdict.startswith("fits: ")


@pytest.mark.parametrize(("gb", "card"), CARD_OF.items())
@pytest.mark.parametrize("size", ["medium", "large", "xl"])
def test_each_size_of_model_and_card_has_a_preset_with_half_a_gib_to_spare(size, gb, card):
    settings = TrainingSettings.from_preset(f"{size}-{gb}gb")
    assert settings.model_name_or_path == f"openai-community/gpt2-{size}"
    assert settings.block_size * settings.effective_batch_size == 16 * 1024
    assert plan_run(settings, card=find_card(card)).headroom_bytes > GIB / 2


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ASSETS / "presets").glob("*.yaml")))
def test_the_evaluation_of_a_preset_fits_its_card(preset):
    gb = next((gb for gb in CARD_OF if preset.endswith(f"{gb}gb")), 12)
    plan = plan_run(TrainingSettings.from_preset(preset), card=find_card(CARD_OF[gb]), train_tokens=0)
    assert plan.card.usable_bytes - evaluation_bytes(plan.shape) > 0.4 * GIB
    assert ("more than the training takes" in dict(plan.rows()).get("evaluation", "")) == (preset == "xl-8gb")


def test_an_evaluation_that_does_not_fit_is_shown_in_the_plan():
    settings = TrainingSettings.from_preset("xl-8gb")
    tight = plan_run(settings, card=SMALL._replace(total_bytes=7 * GIB), train_tokens=0)
    assert dict(tight.rows())["evaluation"].startswith("does not fit: notebook 4 measures in float32")
    assert evaluation_bytes(tight.shape) > tight.card.usable_bytes


# where compiling matters most: all gradients of a pass exist next to the accumulated ones
TINY_PASSES = gpt2(block_size=32, per_device_train_batch_size=1, gradient_accumulation_steps=2)


def test_compiling_is_planned_for_a_gpu_and_a_cpu_plan_says_that_it_does_not_compile():
    always, never = (TINY_PASSES.model_copy(update={"torch_compile": choice}) for choice in ("always", "never"))
    assert plan_run(always, train_tokens=10**4).memory.gradients > plan_run(never, train_tokens=0).memory.gradients
    processor = plan_run(always, card=PROCESSOR, train_tokens=10**4)
    assert processor.memory == plan_run(never, card=PROCESSOR, train_tokens=10**4).memory
    assert "not compiled" in dict(processor.rows())["compiled"]
    assert "compiled" not in dict(plan_run(always, train_tokens=10**4).rows())


def test_auto_is_planned_as_compiled_if_the_run_is_long_enough(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    always, auto = (TINY_PASSES.model_copy(update={"torch_compile": choice}) for choice in ("always", "auto"))
    assert plan_run(auto, train_tokens=10**7).memory == plan_run(always, train_tokens=10**7).memory
    assert plan_run(auto, train_tokens=10**4).memory != plan_run(always, train_tokens=10**4).memory


@pytest.mark.parametrize("card", [SMALL, *CARDS], ids=lambda card: card.name)
@pytest.mark.parametrize("model", ["gpt2", "gpt2-medium", "gpt2-large"])
def test_the_largest_batch_fits_and_one_more_does_not(card, model):
    def fits(batch):
        settings = gpt2(model_name_or_path=model, per_device_train_batch_size=batch, gradient_accumulation_steps=2)
        return plan_run(settings, card=card, train_tokens=10**6).fits

    settings = gpt2(model_name_or_path=model, gradient_accumulation_steps=2)
    largest = plan_run(settings, card=card, train_tokens=10**6)
    assert largest.largest_batch == 0 or fits(largest.largest_batch)
    assert not fits(largest.largest_batch + 1)


@pytest.mark.parametrize("passes", [1, 4])
def test_the_largest_batch_does_not_depend_on_gradient_accumulation(passes):
    once = plan_run(gpt2(gradient_accumulation_steps=2)).largest_batch
    assert plan_run(gpt2(gradient_accumulation_steps=passes)).largest_batch == once


@pytest.mark.parametrize(("batch", "passes"), [(17, 1), (1024, 1), (16, 4), (1024, 1024)])
def test_a_text_smaller_than_a_pass_or_a_step_is_planned_as_the_pass_it_fills(batch, passes):
    complete = plan_run(gpt2(per_device_train_batch_size=16), train_tokens=16 * 1024)
    settings = gpt2(per_device_train_batch_size=batch, gradient_accumulation_steps=passes)
    plan = plan_run(settings, train_tokens=16 * 1024)
    assert (plan.fits, plan.largest_batch, plan.steps) == (True, 16, complete.steps)
    assert (plan.memory, plan.epoch_seconds) == (complete.memory, complete.epoch_seconds)
    assert plan_run(settings).memory.total_bytes > plan.memory.total_bytes


@pytest.mark.parametrize("batch", [28, 32, 48, 97])
def test_the_suggested_settings_fit_and_keep_the_effective_batch(batch):
    settings = gpt2(per_device_train_batch_size=batch, gradient_accumulation_steps=2)
    plan = plan_run(settings)
    assert not plan.fits
    other = settings.model_copy(update=plan.suggested)
    assert other.effective_batch_size == settings.effective_batch_size
    assert plan_run(other).fits
    assert f"per_device_train_batch_size {other.per_device_train_batch_size}" in plan.verdict
    assert f"needs {size_text(-plan.headroom_bytes)} more" in plan.verdict


def test_a_larger_pass_is_suggested_if_the_plan_already_fits():
    plan = plan_run(gpt2(per_device_train_batch_size=1, gradient_accumulation_steps=32))
    batch = plan.suggested["per_device_train_batch_size"]
    assert plan.fits
    assert batch > 1
    assert batch * plan.suggested["gradient_accumulation_steps"] == 32
    assert not plan_run(gpt2(per_device_train_batch_size=2 * batch, gradient_accumulation_steps=16 // batch)).fits


def test_checkpointing_is_suggested_if_no_batch_fits_without_it():
    tight = SMALL._replace(total_bytes=int(3.8 * GIB))
    plan = plan_run(gpt2(per_device_train_batch_size=4, gradient_accumulation_steps=4), card=tight)
    assert plan.largest_batch == 0
    assert plan.suggested["gradient_checkpointing"] is True
    assert plan_run(plan.settings.model_copy(update=plan.suggested), card=tight).fits


@pytest.mark.parametrize(
    ("model", "gib", "words"),
    [
        ("gpt2-large", 11, "no batch fits all weights with this optimizer; optim adafactor with per_device"),
        ("gpt2-xl", 11, "no batch fits all weights with this optimizer; lora_r 16 with per_device"),
        ("gpt2-xl", 2, "and no batch fits: take a smaller model or a larger card"),
    ],
)
def test_if_no_batch_fits_the_verdict_says_what_would_fit(model, gib, words):
    card = SMALL._replace(total_bytes=int((gib + 1) * GIB))
    plan = plan_run(gpt2(model_name_or_path=model), card=card)
    assert (plan.fits, plan.suggested, plan.largest_batch) == (False, {}, 0)
    assert words in plan.verdict
    assert not plan.leaner or plan_run(plan.settings.model_copy(update=plan.leaner), card=card).fits


@pytest.mark.parametrize("changes", [{"from_scratch": True}, {"optim": "muon"}, {"optim": "adafactor"}])
@pytest.mark.parametrize("gib", [4, 6, 8, 12])
def test_leaner_settings_are_valid_together(changes, gib):
    settings = gpt2(model_name_or_path="gpt2-xl", **changes)
    leaner = plan_run(settings, card=SMALL._replace(total_bytes=gib * GIB)).leaner
    assert TrainingSettings(**settings.model_dump() | leaner) == settings.model_copy(update=leaner)


def test_a_shorter_block_is_suggested_if_it_would_help():
    settings = gpt2(lora_r=8, per_device_train_batch_size=1)
    card = SMALL._replace(total_bytes=int(1.6 * GIB))
    plan = plan_run(settings, card=card)
    assert plan.verdict.endswith("take a smaller model, a shorter block_size or a larger card")
    assert plan_run(settings.model_copy(update={"block_size": 64}), card=card).fits


def test_an_adapter_writes_small_checkpoints():
    full, lora = plan_run(gpt2()), plan_run(gpt2(lora_r=8))
    runs = [(plan.shape, plan.settings) for plan in (full, lora)]
    assert [checkpoint_bytes(*run) for run in runs] == [12 * 124_439_808, 12 * 1_179_648]
    assert [model_bytes(*run) for run in runs] == [4 * 124_439_808, 4 * (124_439_808 + 1_179_648)]


def test_a_block_longer_than_the_models_positions_is_refused():
    with pytest.raises(
        SettingsError, match=r"^block_size = 512 is longer than the 256 positions of 'pocket': use [^.]*\.$"
    ):
        plan_run(TrainingSettings(block_size=512))


class TestCounts:
    def test_steps_match_a_hand_calculation(self):
        settings = gpt2(per_device_train_batch_size=4, gradient_accumulation_steps=4, num_train_epochs=3)
        plan = plan_run(settings, train_tokens=100 * 1024 + 5)  # 100 blocks, 25 passes, 7 steps per epoch
        assert (plan.passes_per_epoch, plan.steps, plan.tokens_per_step) == (25, 21, 16 * 1024)

    def test_steps_match_a_real_run(self, tiny_settings):
        from helpers.training.fine_tuning import fine_tune

        finished = fine_tune(tiny_settings)
        plan = plan_run(tiny_settings)
        assert (plan.steps, plan.tokens_are) == (finished.facts["steps"], "counted")

    def test_time_is_the_operations_divided_by_the_achieved_share_of_the_peak(self):
        plan = plan_run(gpt2(per_device_train_batch_size=16, num_train_epochs=1), train_tokens=16 * 1024 * 100)
        work = 16 * 1024 * 100 * operations_per_token(plan.shape, 1024)
        assert plan.epoch_seconds == pytest.approx((work / (0.5 * 80.2e12), work / (0.2 * 80.2e12)))
        shortest, longest = map(duration_text, plan.epoch_seconds)
        times = f"{shortest} to {longest} for 1 epoch, without validations, from 50 to 20% of 80.2 TFLOP/s"
        assert times in str(plan)

    def test_the_time_of_a_small_model_is_its_kernel_launch_time(self):
        plan = plan_run(TrainingSettings(per_device_train_batch_size=8), train_tokens=256 * 80)
        assert plan.epoch_seconds == pytest.approx((10 * 4e-3, 10 * 17.2e-3))
        assert "launch kernels" in str(plan)

    def test_checkpointing_takes_a_third_more_time(self):
        for settings in (gpt2(), TrainingSettings()):  # limited by operations, and by kernel launches
            again = settings.model_copy(update={"gradient_checkpointing": True})
            times = [plan_run(each, train_tokens=10**6).epoch_seconds[0] for each in (settings, again)]
            assert times[1] / times[0] == pytest.approx(4 / 3)

    def test_a_card_with_an_unknown_peak_gets_no_time(self):
        plan = plan_run(gpt2(), card=SMALL._replace(half_tflops=0.0))
        assert plan.epoch_seconds is None
        assert "not known" in str(plan)

    def test_the_time_of_an_epoch_does_not_depend_on_how_much_of_it_is_trained(self):
        settings, how = TrainingSettings(num_train_epochs=0.01), {"card": SMALL, "train_tokens": 10 * 4 * 256}
        part, complete = (
            plan_run(settings.model_copy(update=changes), **how) for changes in ({}, {"num_train_epochs": 1})
        )
        assert part.epoch_seconds == complete.epoch_seconds
        assert part.training_seconds == pytest.approx([seconds / 10 for seconds in complete.training_seconds])

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_validations_take_a_share_of_the_passes_that_would_train_on_their_text(self, checkpointing):
        settings = gpt2(per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=2, eval_steps=20,
                        gradient_checkpointing=checkpointing)  # fmt: skip
        plan = plan_run(settings, train_tokens=100 * 1024, validation_tokens=10 * 1024)
        assert plan.n_validations == 3, "after 20, 40 and all 50 steps"
        # 100 passes train on 200 blocks; 15 passes would train on the 3 x 10 blocks of the validations
        of_a_forward_pass = 3 / 4 if checkpointing else 1
        shares = [low / high for low, high in zip(plan.validation_seconds, plan.training_seconds, strict=True)]
        assert shares == pytest.approx([0.15 * 0.3 * of_a_forward_pass, 0.15 * 0.5 * of_a_forward_pass])
        assert plan.seconds == pytest.approx(
            [sum(both) for both in zip(plan.training_seconds, plan.validation_seconds, strict=True)]
        )
        assert "for 2 epochs, including 3 validations (" in str(plan)

    def test_disk_space_matches_what_a_run_writes(self, tiny_run):
        plan = plan_run(TrainingSettings.from_preset("pocket", run="x", model_name_or_path=str(tiny_run.model_folder),
                                                     block_size=32))  # fmt: skip
        checkpoint = max((tiny_run.folder / "checkpoints").glob("checkpoint-*"))
        written = sum(file.stat().st_size for file in checkpoint.iterdir())
        weights = (tiny_run.model_folder / "model.safetensors").stat().st_size
        assert plan.disk_bytes == pytest.approx(3 * written + weights, rel=0.25)  # small files dominate in a tiny run


def test_on_a_cpu_time_uses_its_measured_speed_and_memory_includes_the_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    predicted = predict_on_this_machine(
        TrainingSettings(num_train_epochs=2), load_model("pocket").config, train_tokens=100_000
    )
    assert predicted["on"] == "this processor"
    assert predicted["peak_bytes"] > predicted["process_bytes"] + 12 * 2_600_000, "weights and optimizer states"
    shortest, longest = predicted["seconds"]
    assert 0 < shortest < longest
    card = this_processor()
    operations = 2 * 100_000 * 17e6  # two epochs; about 17 MFLOP per token, forward and backward pass
    peak = 1e12 * max(card.half_tflops, card.float32_tflops)
    assert longest > operations / peak, "no faster than the matrix products alone"


def test_on_a_card_the_prediction_matches_the_plan(monkeypatch):
    card, shape = find_card("RTX 4070 Ti"), read_shape("pocket")._replace(n_layer=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("helpers.training.devices.card_of_this_machine", lambda: card)
    monkeypatch.setattr("helpers.training.plan.held_bytes", lambda n_weights: 9 * GIB)
    settings = TrainingSettings(num_train_epochs=3)
    predicted = predict_on_this_machine(settings, GPT2Config(**shape._asdict()), train_tokens=100_000)
    plan = plan_run(settings, card=card, shape=shape, train_tokens=100_000)
    assert predicted["peak_bytes"] == plan.memory.total_bytes + 9 * GIB, "the plan is for an empty card"
    assert predicted["seconds"] == pytest.approx([3 * seconds for seconds in plan.epoch_seconds])


class TestDisplay:
    def test_html_is_escaped(self, tmp_path):
        folder = tmp_path / "a&copy;b"  # Windows does not allow < in names
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "gpt2"}')
        shown = plan_run(gpt2(model_name_or_path=str(folder)), card=SMALL._replace(name="<b>card</b>"))._repr_html_()
        assert "a&amp;copy;b" in shown
        assert "&lt;b&gt;card" in shown
        assert "<b>" not in shown
        assert "\u2588" * 30 in shown

    def test_the_table_has_every_part_and_bars_in_proportion(self):
        plan = plan_run(gpt2(per_device_train_batch_size=8))
        bars = {name: len(bar) for name, bar in re.findall(r"^(\D+?) +[\d,.]+ [GM]iB *(#*)", str(plan), re.MULTILINE)}
        assert bars["the card"] == 30
        assert bars["peak"] == round(30 * plan.memory.total_bytes / plan.card.usable_bytes)
        assert all(name.replace("_", " ") in bars for name in plan.memory.parts)
        assert str(plan).isascii()


def call(*arguments):
    return CliRunner().invoke(main, ["plan", *arguments])


class TestCommand:
    def test_a_plan_that_fits_gives_exit_code_0(self):
        result = call("--preset", "rtx-4070-ti", "--gpu", "RTX 4070 Ti")
        assert result.exit_code == 0
        assert result.output.splitlines()[-1].startswith("fits: ")

    def test_a_plan_that_does_not_fit_gives_exit_code_1_and_suggests_one_that_does(self):
        result = call("--preset", "rtx-4070-ti", "--gpu", "4070", "-p", "per_device_train_batch_size", "64")
        assert result.exit_code == 1
        assert "per_device_train_batch_size 16 with gradient_accumulation_steps 8 fits" in result.output

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--gpu", "4070 tie"], "did you mean 'RTX 4070 Ti'"),
            (["--gpu", ""], "There is no card ''"),
            (["--preset", "guid"], "did you mean 'guide'?"),
            (["--gpu", "T4", "-p", "model_name_or_path", "x/y"], "The shape of the model 'x/y' is not known"),
            (["--gpu", "T4", "-p", "block_size", "1024"], "at most 256"),
        ],
    )
    def test_a_usage_error_gives_one_sentence_and_exit_code_2(self, arguments, words):
        result = call(*arguments)
        assert (result.exit_code, result.output.count("\n")) == (2, 1)
        assert words in result.output

    def test_without_a_card_the_plan_is_for_the_courses_own_card(self, monkeypatch):
        monkeypatch.setattr("helpers.training.devices.read_card", lambda: None)
        result = call()
        assert "on one RTX 4070 Ti" in result.stdout

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_the_plan_is_for_this_machines_card_if_there_is_one(self, monkeypatch, precision):
        card = GraphicsCard("RTX 9999", 10 * GIB, 60.0, 30.0, has_bf16=precision == "bf16")
        monkeypatch.setattr("helpers.training.devices.read_card", lambda: card)
        result = call()
        assert f"in {precision} on one RTX 9999" in result.stdout
        assert re.search(r"the card +9\.0 GiB", result.stdout)


def test_a_warm_up_longer_than_the_run_is_noted():
    plan = plan_run(TrainingSettings(warmup_steps=2000, num_train_epochs=1), train_tokens=8 * 4 * 256)
    assert plan.steps == 8
    assert "warmup_steps = 2000 and the training has 8: the learning rate only climbs to 7e-06 of 0.002" in str(plan)
    assert "warm-up" not in str(plan_run(TrainingSettings(warmup_steps=7), train_tokens=8 * 4 * 256))


def test_a_setting_without_effect_is_noted():
    assert "lora_alpha = 64 has no effect with lora_r = 0." in str(plan_run(TrainingSettings(lora_alpha=64)))
    assert "without effect" not in str(plan_run(TrainingSettings(lora_alpha=64, lora_r=8)))


def test_a_warm_up_share_of_a_one_step_run_is_that_step_at_learning_rate_0():
    plan = plan_run(TrainingSettings(warmup_steps=0.05, num_train_epochs=1), train_tokens=4 * 256)
    assert "warmup_steps = 0.05 and the training has 1: the learning rate only climbs to 0 of 0.002" in str(plan)
    assert TrainingArguments("unused", warmup_steps=0.05, use_cpu=True).get_warmup_steps(1) == 1


def test_a_model_too_large_to_build_is_refused_before_its_memory_is_predicted(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 3000}')
    with pytest.raises(SettingsError, match=r"n_layer = 3000 in the model's config.json: it must be 1 to 200"):
        plan_run(TrainingSettings(model_name_or_path=str(tmp_path)))
