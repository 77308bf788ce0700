"""Panels without a browser: what their controls hold, what follows, and what a page without a kernel shows."""

import json
import math
import subprocess
import sys

import ipywidgets as w
import pytest
import yaml

from helpers.data.preparation import load_documents, split_documents
from helpers.settings import NOTEBOOKS, DataSettings, EvaluationSettings, SettingsError, TrainingSettings, preset_names
from helpers.training.cards import CARDS, find_card
from helpers.training.plan import plan_run
from helpers.widgets import DataPanel, TrainingPanel
from helpers.widgets.data_panel import split_sizes
from helpers.widgets.drawing import Bar, Series, bar_chart, line_chart, stacked_bar
from helpers.widgets.fields import control, put, told
from helpers.widgets.gauge import learning_rate_at, memory_bar
from helpers.widgets.parameters import run_command, save_parameters
from helpers.widgets.run_controls import state_of
from helpers.widgets.training_panel import THIS_MACHINE

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>"
FIELDS = {**TrainingSettings.model_fields, **EvaluationSettings.model_fields}


@pytest.fixture
def panel():
    return TrainingPanel(TrainingSettings())


class TestControl:
    @pytest.mark.parametrize("name", FIELDS)
    def test_is_made_from_the_field_and_holds_its_default(self, name):
        made = control(name, FIELDS[name], FIELDS[name].default)
        assert made.description == name
        assert FIELDS[name].description in made.tooltip
        assert made.value == FIELDS[name].default

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("learning_rate", w.SelectionSlider),
            ("per_device_train_batch_size", w.SelectionSlider),
            ("block_size", w.IntSlider),
            ("weight_decay", w.FloatSlider),
            ("lr_scheduler_type", w.Dropdown),
            ("gradient_checkpointing", w.Checkbox),
            ("source", w.Combobox),
            ("run", w.Text),
            ("seed", w.IntText),
        ],
    )
    def test_is_of_the_kind_that_the_field_needs(self, name, kind):
        assert type(control(name, FIELDS[name], FIELDS[name].default)) is kind

    def test_reaches_the_bounds_of_the_schema(self):
        batch = control("b", FIELDS["per_device_train_batch_size"], 8)
        assert (batch.options[0], batch.options[-1]) == (1, 1024)
        block = control("b", FIELDS["block_size"], 256)
        assert (block.min, block.max) == (8, 1024)
        rate = control("r", FIELDS["learning_rate"], 1e-3)
        assert (rate.options[0], rate.options[-1]) == (1e-6, 0.1)
        top_k = control("k", FIELDS["top_k"], 0)
        assert (top_k.options[0], top_k.options[-1]) == (0, 50257)

    @pytest.mark.parametrize(
        ("name", "value"), [("block_size", 250), ("weight_decay", 0.0125), ("learning_rate", 3e-9)]
    )
    def test_stands_at_a_value_between_its_steps(self, name, value):
        made = control(name, FIELDS[name], FIELDS[name].default)
        put(made, value)
        assert made.value == value
        if name != "learning_rate":
            steps = (value - made.min) / made.step
            assert steps == pytest.approx(round(steps), abs=1e-6), "a browser would move it to a whole step"

    def test_says_its_unit_and_what_it_allows(self):
        assert told(FIELDS["block_size"]).endswith("in tokens; a whole number, at least 8, at most 1024")


class TestPanel:
    def test_untouched_returns_exactly_what_it_was_given(self):
        odd = TrainingSettings(learning_rate=1.23456789e-4, block_size=250, warmup_steps=0.0123, num_train_epochs=0.37)
        assert TrainingPanel(odd).settings == odd

    def test_ignores_the_rounding_of_a_browser(self, panel):
        panel.controls["validation_share"].value = 0.09999999999999998
        assert panel.settings == TrainingSettings()
        assert panel.preset.value == "the parameters cell"

    def test_takes_what_is_moved(self, panel):
        panel.controls["learning_rate"].value = 3e-4
        panel.controls["weight_decay"].value = 0.30000000000000004
        panel.controls["gradient_checkpointing"].value = True
        moved = TrainingSettings(learning_rate=3e-4, weight_decay=0.3, gradient_checkpointing=True)
        assert panel.settings == moved
        assert panel.preset.value == "moved by hand"

    def test_a_value_that_cannot_be_is_told_escaped_and_refused(self, panel):
        panel.controls["run"].value = MARKUP
        assert "is not a plain name" in panel._error.value
        assert "<script" not in panel._error.value
        with pytest.raises(SettingsError, match="is not a plain name"):
            _ = panel.settings
        panel.controls["run"].value = "fine"
        assert panel._error.value == ""

    def test_has_help_for_every_control(self, panel):
        assert set(TrainingSettings.model_fields) | {"preset", "graphics card"} == set(panel.help())
        assert all(panel.help().values())

    def test_without_a_front_end_shows_values_gauge_and_rule_and_no_script(self, panel):
        shown = panel.static_html()
        assert "fits: " in shown
        assert "learning_rate" in shown
        assert "<code>panel.settings</code> returns exactly these" in shown
        assert "<script" not in shown

    def test_escapes_its_values_without_a_front_end(self):
        assert "<script" not in TrainingPanel(TrainingSettings(sample_prompt=MARKUP)).static_html()


class TestGauge:
    def test_the_list_of_cards_is_the_one_promised(self, panel):
        names = {
            "RTX 4070 Laptop", "RTX 4060 Ti 16 GB", "RTX 4070", "RTX 4070 Ti", "RTX 4070 Ti SUPER", "RTX 3060 12 GB",
            "RTX 3090", "RTX 4090", "T4", THIS_MACHINE,
        }  # fmt: skip
        assert set(panel.card.options) == names == {card.name for card in CARDS} | {THIS_MACHINE}

    def test_follows_the_plan(self, panel):
        panel.preset.value = "rtx-4070-ti"
        panel.controls["per_device_train_batch_size"].value = 64
        plan = plan_run(panel.settings, card=find_card("RTX 4070 Ti"))
        assert plan.verdict in panel.gauge.value
        assert "per_device_train_batch_size 16 with gradient_accumulation_steps 16 fits" in panel.gauge.value
        for name, size in plan.memory.parts.items():
            assert f"{name.replace('_', ' ')} {size / 2**30:.1f} GiB" in panel.gauge.value or size < 2**30

    def test_turns_from_green_to_red(self):
        settings = TrainingSettings.from_preset("rtx-4070-ti")
        colours = []
        for batch in (4, 20, 64):
            settings = settings.model_copy(update={"per_device_train_batch_size": batch})
            drawn = memory_bar(plan_run(settings, card=find_card("RTX 4070 Ti")))
            colours.append(next(c for c in ("#009E73", "#E69F00", "#D55E00") if c in drawn))
        assert colours == ["#009E73", "#E69F00", "#D55E00"]

    def test_says_that_a_processor_is_not_predicted(self, panel):
        panel._here = None
        panel.card.value = THIS_MACHINE
        assert "not predicted" in panel.gauge.value
        assert "effective batch" in panel.gauge.value
        panel.suggest()
        assert "Choose a graphics card" in panel._error.value

    def test_a_block_too_long_for_the_model_is_told(self, panel):
        panel.controls["block_size"].value = 1024
        assert "use at most 256" in panel._error.value

    @pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
    @pytest.mark.parametrize("warmup", [0, 0.1, 7])
    def test_draws_the_schedule_of_transformers(self, kind, warmup):
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


class TestTrainingPanel:
    @pytest.mark.parametrize("preset", preset_names())
    def test_a_preset_fills_all_controls_and_the_cell_comes_back(self, panel, preset):
        panel.preset.value = preset
        assert panel.settings == TrainingSettings.from_preset(preset)
        assert panel.controls["source"].value == panel.settings.source
        panel.preset.value = "the parameters cell"
        assert panel.settings == TrainingSettings()

    @pytest.mark.parametrize("card", ["RTX 4070 Laptop", "RTX 4090"])
    def test_suggest_takes_the_largest_batch_that_fits_at_the_same_effective_batch(self, panel, card):
        panel.preset.value, panel.card.value = "rtx-4070-ti", card
        panel.controls["per_device_train_batch_size"].value = 32
        whole = panel.settings.effective_batch_size
        panel.suggest()
        assert panel.settings.effective_batch_size == whole == 128
        assert plan_run(panel.settings, card=find_card(card)).fits
        larger = {
            "per_device_train_batch_size": 2 * panel.settings.per_device_train_batch_size,
            "gradient_accumulation_steps": panel.settings.gradient_accumulation_steps // 2,
        }
        assert not plan_run(panel.settings.model_copy(update=larger), card=find_card(card)).fits

    def test_what_fits_no_card_at_all_is_told(self, panel):
        panel.controls["model_name_or_path"].value = "openai-community/gpt2-xl"
        panel.card.value = "RTX 4070 Laptop"
        panel.suggest()
        assert "no batch fits" in panel._error.value

    def test_trains_stops_resumes_and_is_locked_meanwhile(self, tiny_settings, runs):
        panel = TrainingPanel(tiny_settings.model_copy(update={"num_train_epochs": 3.0}))
        locked = []
        watch = panel.run._watch

        def look(history, progress):
            locked.append(panel.controls["seed"].disabled and panel.run.start.disabled and not panel.run.stop.disabled)
            watch(history, progress)
            if len(locked) == 3:
                panel.run.stop.click()

        panel.run._watch = look
        panel.run.start.click()
        panel.run.thread.join()
        assert "Stopped after step 4 of" in panel._error.value
        assert all(locked)
        assert "<polyline" in panel.run._curve.value
        assert (state_of("tiny"), panel.run.start.description) == ("stopped", "Resume")
        assert not panel.controls["seed"].disabled
        panel.run._watch = watch
        panel.run.start.click()
        panel.run.thread.join()
        assert state_of("tiny") == "finished"
        assert str(panel.run.finished) in panel._error.value
        assert panel.run.start.disabled
        assert not panel.run.is_on

    def test_an_error_of_the_training_is_one_sentence_in_the_panel(self, tiny_run, tiny_settings):
        panel = TrainingPanel(tiny_settings.model_copy(update={"learning_rate": 2e-3}))
        panel.run.begin()
        panel.run.thread.join()
        assert "was started with learning_rate = 0.001, not 0.002" in panel._error.value
        assert not panel.controls["seed"].disabled


class TestParameters:
    def test_are_read_back_as_they_were(self, runs):
        settings = TrainingSettings(run="mine", learning_rate=5e-5, sample_prompt='007: "yes"', weight_decay=1e-7)
        saved = save_parameters(settings)
        assert "5.0e-05" in saved.path.read_text()
        assert TrainingSettings(**yaml.safe_load(saved.path.read_text())) == settings
        assert saved.path == runs / "mine/parameters.yaml"

    def test_never_replace_others(self):
        first = save_parameters(TrainingSettings(run="mine")).path
        assert save_parameters(TrainingSettings(run="mine")).path == first
        second = save_parameters(TrainingSettings(run="mine", seed=1)).path
        assert second.name == "parameters-2.yaml"
        assert "seed: 42" in first.read_text()

    def test_the_command_line_says_the_same(self):
        command = run_command(TrainingSettings(run="mine", sample_prompt="a b", from_scratch=True, learning_rate=5e-5))
        expected = "python -m helpers run --run mine -p learning_rate 5e-05 -p from_scratch true -p sample_prompt 'a b'"
        assert command == expected

    def test_the_command_line_is_quoted_as_the_systems_shell_reads_it(self, monkeypatch):
        settings = TrainingSettings(run="mine", sample_prompt="a b")
        assert run_command(settings).endswith("-p sample_prompt 'a b'")
        monkeypatch.setattr(sys, "platform", "win32")
        assert run_command(settings).endswith('-p sample_prompt "a b"')

    def test_are_shown_with_their_commands(self, panel):
        panel.controls["run"].value = "mine"
        panel.save()
        assert "03_fine_tuning.ipynb" in panel._commands.value
        assert "-f " in panel._commands.value
        assert "python -m helpers run --run mine" in panel._commands.value

    def test_where_they_cannot_be_written_says_so(self, panel, runs):
        runs.mkdir(parents=True)
        (runs / "pocket").write_text("a file in the way")
        panel.save()
        assert "Not possible" in panel._error.value


class TestDataPanel:
    def test_counts_what_padding_wastes(self):
        panel = DataPanel(DataSettings())
        assert panel.settings == DataSettings()
        panel.controls["block_size"].value = 512
        assert "padded to 512" in panel.gauge.value
        assert f"{len(load_documents(DataSettings())['train'])} documents" in panel.gauge.value
        assert "padded to 256" in panel.static_html()

    def test_reads_another_source_in_the_background_and_once(self, text_file):
        panel = DataPanel(DataSettings())
        panel.controls["source"].value = str(text_file)
        panel.thread.join()
        assert "40 documents" in panel.gauge.value
        panel.controls["source"].value = "fables"
        thread = panel.thread
        panel.controls["source"].value = str(text_file)
        assert panel.thread is thread
        assert "40 documents" in panel.gauge.value

    def test_a_source_that_is_not_there_is_told_escaped(self):
        panel = DataPanel(DataSettings())
        panel.controls["source"].value = f"{MARKUP}.txt"
        panel.thread.join()
        assert "is not there" in panel._error.value
        assert "<script" not in panel._error.value
        assert "is not there" in DataPanel(DataSettings(source="missing.txt")).static_html()

    def test_of_a_large_source_only_the_first_documents_are_read(self, tmp_path):
        large = tmp_path / "large.txt"
        large.write_text("\n\n".join(f"Document {number} of many." for number in range(2100)))
        assert "From the first 2,000 documents" in DataPanel(DataSettings(source=str(large))).gauge.value

    def test_splits_as_the_data_module_does(self, text_file):
        settings = DataSettings(source=str(text_file), validation_share=0.3, test_share=0.05)
        parts, _ = split_documents(load_documents(settings), settings)
        assert split_sizes({"train": 40}, settings) == {name: len(part) for name, part in parts.items()}

    @pytest.mark.parametrize("own", [("train", "test"), ("train", "valid"), ("train", "valid", "test")])
    def test_keeps_a_sources_own_parts_as_the_data_module_does(self, tmp_path, own):
        for name in own:
            (tmp_path / f"{name}.txt").write_text("\n\n".join(f"Document {number} of {name}." for number in range(30)))
        settings = DataSettings(source=str(tmp_path), test_share=0.2, near_duplicates="keep")
        documents = load_documents(settings)
        parts, _ = split_documents(documents, settings)
        found = split_sizes({name: len(part) for name, part in documents.items()}, settings)
        assert found == {name: len(part) for name, part in parts.items()}
        assert ", ".join(f"{name} {n}" for name, n in found.items()) in DataPanel(settings).gauge.value


def test_drawings_escape_what_they_are_given():
    drawn = (
        line_chart([Series(MARKUP, [(0, 1), (1, math.nan), (2, 3)])] * 2, title=MARKUP, xlabel=MARKUP, ylabel=MARKUP),
        bar_chart([Bar(MARKUP, 0.5, MARKUP)], title=MARKUP),
        stacked_bar([(MARKUP, 1.0, MARKUP)], limit=2.0, limit_text=MARKUP, colour="#000"),
        line_chart([Series("none", [])], title="t", xlabel="x", ylabel="y"),
    )
    assert all("<script" not in text and "<img" not in text and "nan" not in text for text in drawn)


def test_the_panels_of_the_course_come_without_torch():
    source = "import sys, helpers.widgets; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    child = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=NOTEBOOKS.parent
    )
    assert child.stdout == "[]\n"


def test_a_report_keeps_the_summary_of_a_panel_and_no_script(tmp_path, runs):
    import nbformat

    from helpers.course import run_course

    cells = ["run = 'mine'", "from helpers.widgets import TrainingPanel\nfrom helpers.settings import TrainingSettings",
             "TrainingPanel(TrainingSettings(learning_rate=0.0123))"]  # fmt: skip
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nb.cells[0].metadata["tags"] = ["parameters"]
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path / "03_a.ipynb"
    nbformat.write(nb, path)
    page = run_course([path], run="mine", parameters={}).read_text(encoding="utf-8")
    assert "0.0123" in page
    assert "fits: " in page
    assert "<script" not in page
    assert "course-static{display:none}" not in page


def test_the_first_cells_of_notebook_3_train_with_what_papermill_sets(tmp_path, tiny_settings, runs):
    nb = json.loads((NOTEBOOKS / "03_fine_tuning.ipynb").read_text())
    ids = [cell["id"] for cell in nb["cells"]]
    nb["cells"] = nb["cells"][: ids.index("03-07") + 1]
    path = tmp_path / "short.ipynb"
    path.write_text(json.dumps(nb))
    saved = save_parameters(tiny_settings)
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(path), str(tmp_path / "out.ipynb"), "-f"]
    done = subprocess.run([*command, str(saved.path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((runs / "tiny/settings.json").read_text())["settings"]
    assert TrainingSettings(**record) == tiny_settings
