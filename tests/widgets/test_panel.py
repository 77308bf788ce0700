"""What all panels share: values that stay exact, errors in one sentence, and a page without a kernel."""

import re
import subprocess
import sys
import threading

import ipywidgets as w
import nbformat
import pytest

from helpers.course import find_notebook
from helpers.paths import COMMAND, NOTEBOOKS
from helpers.settings import DataSettings, SettingsError, TrainingSettings
from helpers.widgets import DataPanel, TrainingPanel
from helpers.widgets.panel import COMMON


def test_an_untouched_panel_returns_exactly_the_settings_it_started_with():
    odd = TrainingSettings(learning_rate=1.23456789e-4, block_size=250, warmup_steps=0.0123, num_train_epochs=0.37)
    assert TrainingPanel(odd).settings == odd


def test_rounding_by_the_browser_changes_nothing(panel):
    panel.controls["validation_share"].value = 0.09999999999999998
    assert panel.settings == TrainingSettings()
    assert panel.preset.value == "the parameters cell"


def test_moving_a_control_changes_the_settings(panel):
    panel.controls["learning_rate"].value = 3e-4
    panel.controls["weight_decay"].value = 0.30000000000000004
    panel.controls["gradient_checkpointing"].value = True
    moved = TrainingSettings(learning_rate=3e-4, weight_decay=0.3, gradient_checkpointing=True)
    assert panel.settings == moved
    assert panel.preset.value == "moved by hand"


def test_the_settings_below_rarely_changed_in_a_notebook_are_folded(panel):
    common, other = panel.common_controls(), panel.other_controls()
    for number in ("02", "03"):
        nb = nbformat.read(find_notebook(number), as_version=4)
        (source,) = (cell.source for cell in nb.cells if "parameters" in cell.metadata.get("tags", ()))
        above = re.findall(r"^(\w+) = ", source.split("# rarely changed")[0], re.MULTILINE)
        assert above == [name for name in COMMON if name in DataSettings.model_fields or number == "03"]
    assert [control.description for control in common.children] == list(COMMON)
    button, folded = other.children
    assert folded.layout.display == "none"
    assert button.description == f"{len(panel.controls) - len(COMMON)} rarely changed settings, 0 not at their defaults"
    panel.controls["weight_decay"].value = 0.3
    assert button.description.endswith("1 not at their defaults")
    button.value = True
    assert folded.layout.display == ""
    grids = folded.children[1::2]
    assert {box.description for grid in grids for box in grid.children} == panel.controls.keys() - set(COMMON)


def test_a_control_without_effect_is_dimmed_until_another_one_enables_it(panel):
    def dimmed():
        return {name for name, control in panel.controls.items() if "course-idle" in control._dom_classes}

    assert {"lora_alpha", "lora_dropout", "n_layer", "resid_pdrop", "vocab_size"} <= dimmed()
    assert not {"lora_r", "from_scratch", "tokenizer", "adam_beta2", "learning_rate"} & dimmed()
    panel.controls["lora_r"].value = 8
    assert not {"lora_alpha", "lora_dropout"} & dimmed()
    panel.controls["lora_r"].value = 0
    panel.controls["from_scratch"].value = True
    assert "lora_alpha" in dimmed()
    assert not {"n_layer", "resid_pdrop"} & dimmed()


def test_an_invalid_value_is_explained_escaped_and_refused(panel, markup):
    panel.controls["run"].value = markup
    assert "is not a plain name" in panel._message.value
    assert "<script" not in panel._message.value
    with pytest.raises(SettingsError, match="is not a plain name"):
        _ = panel.settings
    panel.controls["run"].value = "fine"
    assert panel._message.value == ""


def test_every_control_has_help(panel):
    assert set(TrainingSettings.model_fields) | {"preset", "graphics card"} == set(panel.help())
    assert all(panel.help().values())


def test_background_work_locks_the_panel_and_ends_with_its_message(panel):
    locked = []
    panel.run_in_background(lambda: locked.append(panel.controls["seed"].disabled) or "Done & saved.")
    panel.thread.join()
    assert locked == [True]
    assert not panel.is_locked
    assert not panel.controls["seed"].disabled
    assert "Done &amp; saved." in panel._message.value


def test_a_value_that_arrives_after_the_start_is_set_back_and_named(panel):
    epochs, go = panel.controls["num_train_epochs"], threading.Event()
    late = {"index": epochs.options.index(0.3)}  # as a browser sends it
    panel.run_in_background(lambda: go.wait(60) and "")
    epochs.set_state(late)
    panel.preset.set_state({"index": panel.preset.options.index("guide")})
    shown = epochs.value, panel.settings, panel.preset.value, panel._message.value
    go.set()
    panel.thread.join()
    sentences = (
        "num_train_epochs = 0.3 arrived after the start, which used num_train_epochs = 1.5.<br>"
        "preset = &#x27;guide&#x27; arrived after the start, which used the values below."
    )
    assert shown == (1.5, TrainingSettings(), "moved by hand", f"<div class='course-note'>{sentences}</div>")
    assert sentences in panel._message.value, "they are still shown after the work"
    epochs.set_state(late)
    assert panel.settings.num_train_epochs == 0.3


def test_a_click_that_arrives_after_the_start_changes_nothing(panel, runs):
    panel.fill({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8})
    before, go = panel.settings, threading.Event()
    panel.run_in_background(lambda: go.wait(60) and "")
    first = panel.thread
    for button in (widget for widget in panel._other_widgets if isinstance(widget, w.Button)):
        button._handle_button_msg(button, {"event": "click"}, [])  # as a browser sends it
    shown = panel.settings, panel._message.value, panel.thread, panel._command.value
    go.set()
    first.join()
    assert shown == (before, "", first, "")
    assert not runs.exists()


def test_the_end_of_background_work_does_not_show_values_that_have_changed_meanwhile(panel, monkeypatch):
    is_slow, may_go_on, old_show = threading.Event(), threading.Event(), panel._show

    def show(settings):
        if threading.current_thread() is panel.thread:
            is_slow.set()
            may_go_on.wait(1)  # the other thread would be ready by then
        old_show(settings)

    monkeypatch.setattr(panel, "_show", show)
    panel.run_in_background(lambda: "Done.")
    assert is_slow.wait(60)
    panel.controls["num_train_epochs"].set_state({"index": panel.controls["num_train_epochs"].options.index(0.3)})
    panel.thread.join()
    assert panel.settings.num_train_epochs == 0.3
    assert "for num_train_epochs = 0.3" in panel.gauge.value
    assert panel._message.value == "", "it was about the work with the previous values"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (SettingsError("No text."), "Not possible:</b> No text.</div>"),
        (OSError(28, "No space left on device"), "Not possible:</b> The disk is full ("),
        (KeyError("labels"), f"KeyError: &#x27;labels&#x27; (`{COMMAND} explain` reads errors.)"),
    ],
)
def test_a_background_error_is_shown_and_unlocks_the_panel(panel, error, sentence):
    def fail():
        raise error

    panel.run_in_background(fail)
    panel.thread.join()
    assert sentence in panel._message.value
    assert not panel.is_locked


def test_a_page_without_a_kernel_shows_values_gauge_and_rule_and_no_script(panel):
    page = panel.static_html()
    assert "fits: " in page
    assert "learning_rate" in page
    assert "<code>panel.settings</code> returns exactly these" in page
    assert "<script" not in page


def test_a_terminal_gets_the_page_as_text(panel, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    panel._ipython_display_()
    (text,) = (bundle["text/plain"] for bundle in shown if "text/html" in bundle)
    lines = text.splitlines()
    assert "fits: " in lines[0]
    assert any(line.split()[:3] == ["effective", "batch", "4"] for line in lines)
    assert "panel.settings returns exactly these until somebody moves a control" in lines[-1]


def test_values_are_escaped_on_a_page_without_a_kernel(markup):
    assert "<script" not in TrainingPanel(TrainingSettings(sample_prompt=markup)).static_html()


@pytest.mark.parametrize("kind", [TrainingPanel, DataPanel])
def test_a_panel_with_an_invalid_value_can_be_shown_again(kind):
    panel = kind(DataSettings() if kind is DataPanel else TrainingSettings())
    panel.controls["run"].value = "a/b"
    assert "is not a plain name" in panel.static_html()


def test_a_report_keeps_the_summary_of_a_panel_and_no_script(tmp_path, runs):
    import nbformat

    from helpers.course import run_course

    cells = [
        "run = 'report'",
        "from helpers.settings import TrainingSettings\nfrom helpers.widgets import TrainingPanel",
        "TrainingPanel(TrainingSettings(learning_rate=0.0123))",
    ]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nb.cells[0].metadata["tags"] = ["parameters"]
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path / "03_a.ipynb"
    nbformat.write(nb, path)
    page = run_course([path], run="report", parameters={}).read_text(encoding="utf-8")
    assert "0.0123" in page
    assert "fits: " in page
    assert "<script" not in page
    assert "course-static{display:none}" not in page


def test_importing_the_panels_imports_nothing_heavy():
    source = (
        "import sys; from helpers.widgets import DataPanel, Playground, TrainingPanel; "
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    child = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=NOTEBOOKS.parent
    )
    assert child.stdout == "[]\n"
