"""The training panel: presets, cards, the suggested batch, and its values as a papermill file with commands."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from helpers.data import prepare
from helpers.display import GREEN, ORANGE, RED
from helpers.paths import ROOT
from helpers.settings import TrainingSettings, preset_names
from helpers.training import CARDS, find_card, plan_run, this_processor
from helpers.training.calibration import add_measurements
from helpers.training.processes import one_training_at_a_time
from helpers.widgets import TrainingPanel
from helpers.widgets.training_panel import (
    THIS_MACHINE,
    gauge_html,
    learning_rate_at,
    memory_bar,
    papermill_command,
    save_parameters,
)
from tests.training import fake_machine


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_sets_all_controls_and_the_parameters_cell_can_be_restored(panel, preset):
    panel.preset.value = preset
    assert panel.settings == TrainingSettings.from_preset(preset)
    assert panel.controls["source"].value == panel.settings.source
    panel.preset.value = "the parameters cell"
    assert panel.settings == TrainingSettings()


def test_each_published_card_and_this_machine_can_be_chosen(panel):
    assert set(panel.card.options) == {card.name for card in CARDS} | {THIS_MACHINE}


def test_the_gauge_follows_the_plan(panel):
    panel.preset.value = "rtx-4070-ti"
    panel.controls["per_device_train_batch_size"].value = 64
    plan = plan_run(panel.settings, card=find_card("RTX 4070 Ti"))
    assert plan.verdict in panel.gauge.value
    assert "per_device_train_batch_size 16 with gradient_accumulation_steps 8 fits" in panel.gauge.value
    for name, size in plan.memory.parts.items():
        assert f"{name.replace('_', ' ')} {size / 2**30:.1f} GiB" in panel.gauge.value or size < 2**30


def test_without_a_card_this_machine_is_its_processor(panel):
    panel._own_card = None
    assert "Predicted for RTX 4070 Ti" in panel.gauge.value
    panel.card.value = THIS_MACHINE
    assert "Predicted for this processor" in panel.gauge.value
    panel.suggest()
    assert "the largest pass that fits this processor" in panel._message.value


def test_a_measurement_runs_in_its_own_process_and_is_used_in_the_prediction(panel, monkeypatch):
    started, seen = threading.Event(), threading.Event()

    def run(command, **_):
        assert command[1:] == ["-m", "helpers", "calibrate"]
        started.set()
        assert seen.wait(10)
        add_measurements(this_processor(), fake_machine.measurements())
        return subprocess.CompletedProcess(command, 0, stdout="device\none\ntwo\n", stderr="")

    monkeypatch.setattr("helpers.widgets.training_panel.subprocess.run", run)
    panel._own_card = None
    panel.controls["mixed_precision"].value = "no"
    panel.measure()
    assert started.wait(10)
    assert panel.is_locked
    assert panel.run.stop.disabled, "it stops a training run, not a measurement"
    seen.set()
    panel.thread.join()
    assert "Measured on this machine: 2 training runs." in panel._message.value
    assert "measured on this machine" in panel.gauge.value


def test_nothing_is_measured_while_a_run_is_trained_in_this_kernel(panel):
    with one_training_at_a_time():
        panel.measure()
    assert "A run is being trained in this kernel" in panel._message.value
    assert panel.thread is None


def test_a_failed_measurement_shows_the_last_line_of_its_error(panel, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback ...\nOSError: no <room>\n")
    monkeypatch.setattr("helpers.widgets.training_panel.subprocess.run", lambda *_, **__: failed)
    panel.measure()
    panel.thread.join()
    assert "The measurement failed: OSError: no &lt;room&gt;</div>" in panel._message.value


def test_a_block_longer_than_the_models_positions_is_refused(panel):
    panel.controls["block_size"].value = 1024
    assert "use at most 256" in panel._message.value
    panel.suggest()
    assert "use at most 256" in panel._message.value
    assert "use at most 256" in TrainingPanel(TrainingSettings(block_size=1024)).static_html()


def test_an_error_clears_the_verdict_on_other_values(panel):
    for name, value in (("seed", -5), ("n_layer", 12)):
        assert panel.gauge.value
        panel.controls[name].value = value
        assert "Not possible" in panel._message.value
        assert panel.gauge.value == ""
        panel.fill({name: getattr(TrainingSettings(), name)})


def test_a_missing_text_is_reported_and_not_planned(panel):
    panel.controls["source"].value = "<b>my</b>.txt"
    assert "source = &#x27;&lt;b&gt;my&lt;/b&gt;.txt&#x27; is not there" in panel._message.value
    assert panel.gauge.value == ""


def test_the_text_is_counted_as_soon_as_it_is_prepared(tiny_settings):
    panel = TrainingPanel(tiny_settings)
    assert "(about, from the size" in panel.gauge.value
    tokens = prepare(tiny_settings).facts["splits"]["train"]["tokens"]
    panel.refresh()
    assert f"{tokens:,} tokens (counted)" in panel.gauge.value


@pytest.mark.parametrize("card", ["RTX 4070 Laptop", "RTX 4090"])
def test_suggest_takes_the_largest_batch_that_fits_at_the_same_effective_batch(panel, card):
    panel.preset.value, panel.card.value = "rtx-4070-ti", card
    panel.controls["per_device_train_batch_size"].value = 32
    before = panel.settings.effective_batch_size
    panel.suggest()
    assert panel.settings.effective_batch_size == before == 64
    assert plan_run(panel.settings, card=find_card(card)).fits
    larger = {
        "per_device_train_batch_size": 2 * panel.settings.per_device_train_batch_size,
        "gradient_accumulation_steps": panel.settings.gradient_accumulation_steps // 2,
    }
    assert not plan_run(panel.settings.model_copy(update=larger), card=find_card(card)).fits
    assert f"is the largest pass that fits the {card}" in panel._message.value


def test_suggest_says_that_no_batch_fits(panel):
    panel.controls["model_name_or_path"].value = "openai-community/gpt2-xl"
    panel.card.value = "RTX 4070 Laptop"
    panel.suggest()
    assert "no batch fits" in panel._message.value


class TestParameters:
    def test_are_read_back_unchanged(self, runs):
        settings = TrainingSettings(run="kept", learning_rate=5e-5, sample_prompt='007: "yes"', weight_decay=1e-7)
        path = save_parameters(settings)
        assert "5.0e-05" in path.read_text(encoding="utf-8")
        assert TrainingSettings(**yaml.safe_load(path.read_text(encoding="utf-8"))) == settings
        assert path == runs / "kept/parameters.yaml"

    def test_never_replace_others(self):
        first = save_parameters(TrainingSettings(run="kept"))
        assert save_parameters(TrainingSettings(run="kept")) == first
        second = save_parameters(TrainingSettings(run="kept", seed=1))
        assert second.name == "parameters-2.yaml"
        assert "seed: 42" in first.read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("platform", "file", "quoted"),
        [
            ("linux", "a b", "'a b.yaml'"),
            ("win32", "a b", '"a b.yaml"'),
            ("win32", "plain", "plain.yaml"),
            ("win32", "R&D", '"R&D.yaml"'),  # PowerShell refuses an &, and cmd ends the command there
            ("win32", "a;b", '"a;b.yaml"'),  # PowerShell ends the command at a semicolon, and splits at a comma
            ("win32", "it's", '"it\'s.yaml"'),
        ],
    )
    def test_have_a_command_line_quoted_for_the_systems_shell(self, monkeypatch, platform, file, quoted):
        monkeypatch.setattr(sys, "platform", platform)
        assert papermill_command(Path(f"{file}.yaml")).endswith(f"-f {quoted}")

    def test_have_a_command_that_finds_papermill_in_the_clones_environment(self, monkeypatch):
        for scripts, typed in ((ROOT / ".venv" / "bin", str(Path(".venv/bin/papermill"))), ("/conda/bin", "papermill")):
            monkeypatch.setattr("sysconfig.get_path", lambda _, scripts=scripts: str(scripts))
            assert papermill_command(Path("a.yaml")).startswith(f"{typed} ")

    def test_are_shown_with_their_command(self, panel):
        panel.controls["run"].value = "kept"
        panel.save()
        assert "03_fine_tuning.ipynb" in panel._command.value
        assert "-f " in panel._command.value

    def test_that_cannot_be_written_are_explained(self, panel, runs):
        runs.mkdir(parents=True)
        (runs / "pocket").write_text("a file in the way")
        panel.save()
        assert "Not possible" in panel._message.value


def test_the_bar_turns_from_green_to_red():
    settings = TrainingSettings.from_preset("rtx-4070-ti")
    colours = []
    for batch in (4, 20, 64):
        settings = settings.model_copy(update={"per_device_train_batch_size": batch})
        picture = memory_bar(plan_run(settings, card=find_card("RTX 4070 Ti")))
        colours.append(next(c for c in (GREEN, ORANGE, RED) if c in picture))
    assert colours == [GREEN, ORANGE, RED]


def test_time_and_largest_batch_are_shown():
    shown = gauge_html(plan_run(TrainingSettings()))
    assert all(name in shown for name in ("time", "largest batch", "effective batch"))


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 0.1, 1.5, 7])
def test_the_learning_rate_matches_transformers(kind, warmup):
    import torch
    from transformers import TrainingArguments, get_scheduler

    settings, steps = TrainingSettings(lr_scheduler_type=kind, warmup_steps=warmup, learning_rate=0.1), 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    arguments = TrainingArguments(output_dir="unused", warmup_steps=warmup, use_cpu=True)
    scheduler = get_scheduler(kind, optimizer, arguments.get_warmup_steps(steps), steps)
    for step in range(steps):
        assert learning_rate_at(settings, step, steps) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
