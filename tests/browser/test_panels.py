"""The five notebooks and their panels as a person uses them: a real JupyterLab in a real browser."""

import os
import re
import shlex
import subprocess
import sysconfig

import pytest
import yaml
from playwright.sync_api import TimeoutError

from helpers.course import find_notebook
from helpers.display import GIB
from helpers.paths import ASSETS, ROOT
from helpers.settings import EvaluationSettings, TrainingSettings
from helpers.training import plan_run
from helpers.troubleshooting.lab import write_notebook

pytestmark = pytest.mark.browser
GPT2_TAKES = f"{plan_run(TrainingSettings.from_preset('rtx-4070-ti')).memory.total_bytes / GIB:.1f} GiB predicted"
ENDLESS = "2.00"  # temperature at which no text ends by itself after a few tokens, on any processor
EVIL = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "</div><svg onload='window.hacked = 1'></svg> # head **bold** [link](javascript:window.hacked=1)"
)


class Shown:
    """A panel in a notebook's page."""

    def __init__(self, notebook):
        self.page, self.panel = notebook.page, notebook.page.locator(".course-panel")
        self.panel.scroll_into_view_if_needed()
        self.page.wait_for_function("() => document.querySelector('.course-panel').innerText.length > 200")
        self.verdict = self.panel.locator(".course-verdict")

    def row(self, name):
        label = self.page.locator(f".widget-label:text-is('{name}')")
        return self.panel.locator(".widget-inline-hbox", has=label)

    def handle(self, name):
        handle = self.row(name).locator(".noUi-handle")
        handle.scroll_into_view_if_needed()
        return handle

    def value(self, name):
        return self.row(name).locator(".widget-readout").inner_text()

    def drag(self, name, pixels):
        self.handle(name).hover()
        box = self.handle(name).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + pixels, y, steps=5)
        self.page.mouse.up()
        self.wait_until_sent()

    def move(self, name, value):
        """Move a slider by keyboard, from its left end up to a value."""
        handle = self.handle(name)
        handle.press("Home")
        for _ in range(60):
            if self.value(name) == value:
                self.wait_until_sent()
                return
            handle.press("ArrowRight")
        raise AssertionError(f"{name} does not reach {value}")

    def wait_until_sent(self):
        """Wait until the kernel stays idle: while it is busy, a browser keeps a moved slider's last value."""
        kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
        self.page.evaluate("() => { window.idlePolls = 0; }")
        self.page.wait_for_function(
            f"() => (window.idlePolls = {kernel}.status === 'idle' ? window.idlePolls + 1 : 0) > 5", polling=100
        )

    def type(self, name, text):
        box = self.row(name).locator("input")
        box.fill(text)
        box.press("Tab")

    def choose(self, name, option):
        self.row(name).locator("select").select_option(option)

    def button(self, name):
        # Only the end of the name: the character of an icon may be in front of it.
        return self.panel.get_by_role("button", name=re.compile(f"{name}$"))

    def fold(self, is_folded):
        """Hide or show the controls of rarely changed settings, in the panels of notebooks 02 and 03."""
        one_of_them = self.row("test_share")
        if one_of_them.is_visible() is is_folded:
            self.button("rarely changed settings, .*").click()
            one_of_them.wait_for(state="hidden" if is_folded else "visible")

    def wait_for_status(self, pattern, seconds=90):
        status = self.panel.locator(".course-status")
        try:
            status.filter(has_text=re.compile(pattern)).first.wait_for(timeout=1000 * seconds)
        except TimeoutError as error:
            raise AssertionError(f"{pattern!r} is not in {status.all_inner_texts()}") from error


def is_hacked(page):
    return page.evaluate("() => window.hacked !== undefined")


def scrolls_sideways(page):
    wide = "e => e.scrollWidth > e.clientWidth + 1"
    panel = page.locator(".jp-OutputArea-output:has(.course-panel)").first
    return page.evaluate(f"({wide})(document.documentElement)") or panel.evaluate(wide)


@pytest.fixture(scope="module")
def hostile(lab, open_notebook):
    """Return notebook 02, running on a corpus of markup."""
    corpus = lab.folder / "evil.txt"
    corpus.write_text("\n\n".join(f"{EVIL} {number}. A fox went to the well." for number in range(120)))
    text = (lab.folder / "02_data.ipynb").read_text(encoding="utf-8")
    text = text.replace(r"source = \"fables\"", rf"source = \"{corpus.name}\"").replace(
        r"run = \"pocket\"", r"run = \"evil\""
    )
    (lab.folder / "evil.ipynb").write_text(text)
    notebook = open_notebook("evil.ipynb")
    notebook.run_all()
    return notebook


def test_notebook_1_runs_from_top_to_bottom(notebooks, hostile):  # both run together
    assert notebooks["01"].wait() == []


def test_notebook_2_runs_from_top_to_bottom(notebooks):
    assert notebooks["02"].wait() == []


def test_the_data_panel_follows_its_sliders(notebooks):
    shown = Shown(notebooks["02"])
    assert "padded to 256" in shown.panel.inner_text()
    shown.drag("block_size", 60)
    shown.panel.get_by_text("packed, as here").wait_for()
    assert int(shown.value("block_size")) > 256
    shown.panel.get_by_text(f"padded to {shown.value('block_size')}").wait_for()
    shown.type("source", "python-reference")
    shown.wait_for_status("0% useful|% useful")
    shown.panel.get_by_text(re.compile(r"^\d+ documents; repeated")).wait_for()


def test_markup_typed_into_the_data_panel_does_not_run(notebooks):
    shown = Shown(notebooks["02"])
    shown.type("source", EVIL)
    shown.wait_for_status("Not possible.*window.hacked")
    assert not is_hacked(shown.page)
    shown.type("source", "fables")
    shown.panel.get_by_text(re.compile(r"\d+ documents")).wait_for()


def test_markup_in_a_corpus_does_not_run(hostile):
    assert hostile.wait() == []
    assert "window.hacked" in hostile.text()
    assert not is_hacked(hostile.page)
    hostile.page.close()


def test_notebook_3_runs_from_top_to_bottom_or_shows_its_executed_cells(notebooks):
    assert notebooks["03"].wait() == []
    assert "Traceback" not in notebooks["03"].text()


def test_the_gauge_follows_the_mouse_and_the_keyboard(notebooks):
    shown = Shown(notebooks["03"])
    assert shown.row("preset").locator("select").input_value() == "the parameters cell", "opening changes nothing"
    assert shown.verdict.inner_text().startswith("✔ fits")
    shown.choose("preset", "rtx-4070-ti")
    shown.panel.get_by_text(GPT2_TAKES).wait_for()
    shown.drag("per_device_train_batch_size", 70)
    shown.verdict.get_by_text(re.compile(r"needs \d+\.\d GiB more; per_device_train_batch_size \d+ with")).wait_for()
    batch = int(shown.value("per_device_train_batch_size"))
    handle = shown.handle("per_device_train_batch_size")
    handle.focus()
    for _ in range(20):
        if shown.verdict.inner_text().startswith("✔ fits"):
            break
        handle.press("ArrowLeft")
        shown.wait_until_sent()
    assert int(shown.value("per_device_train_batch_size")) < batch
    assert shown.verdict.inner_text().startswith("✔ fits"), shown.verdict.inner_text()
    assert shown.row("preset").locator("select").input_value() == "moved by hand"


def test_suggest_takes_a_batch_that_fits_the_chosen_card(notebooks):
    shown = Shown(notebooks["03"])
    shown.choose("preset", "rtx-4070-ti")
    shown.choose("graphics card", "RTX 4070 Laptop")
    shown.drag("per_device_train_batch_size", 90)
    shown.verdict.get_by_text("needs").wait_for()
    shown.button("Suggest").focus()
    shown.page.keyboard.press("Space")
    shown.wait_for_status("is the largest pass that fits the RTX 4070 Laptop")
    assert shown.verdict.inner_text().startswith("✔ fits")


def test_a_preset_fills_every_control(notebooks):
    shown = Shown(notebooks["03"])
    shown.fold(False)
    shown.choose("preset", "guide")
    shown.panel.get_by_text("Learning rate: linear, peak 5e-05").wait_for()
    assert shown.row("preset").locator("select").input_value() == "guide", "nothing was moved by hand"
    for name, value in TrainingSettings.from_preset("guide").model_dump().items():
        row = shown.row(name)
        if row.locator("input[type=checkbox]").count():
            assert row.locator("input").is_checked() is value
        elif row.locator("input, select").count():
            assert row.locator("input, select").input_value() == str(value), name
        elif row.locator(".widget-readout").count():
            assert float(shown.value(name)) == pytest.approx(value), name
    shown.drag("eval_steps", 600)  # to its end, which the preset's value has moved
    shown.row("eval_steps").locator(".widget-readout:text-is('100000')").wait_for()


def test_every_control_has_a_name_and_a_description_for_a_screen_reader(notebooks):
    page = notebooks["03"].page
    nameless = """() => [...document.querySelectorAll(
        '.course-panel .noUi-handle, .course-panel input, .course-panel select, .course-panel button')].filter(part =>
        !(part.ariaLabel || part.labels?.length || part.innerText) ||
        !(part.getAttribute('aria-description') || part.title)).map(part => part.outerHTML)"""
    assert page.evaluate(nameless) == []
    slider = Shown(notebooks["03"]).handle("learning_rate")
    assert slider.get_attribute("aria-valuetext") == "5e-05"
    assert "peak of the learning-rate schedule" in slider.get_attribute("aria-description")


def test_screen_reader_values_are_updated_in_two_panels_on_one_page(browser):
    page, script = browser.new_page(), (ASSETS / "widgets" / "labels.js").read_text(encoding="utf-8")
    row = "<div class='widget-inline-hbox'><label class='widget-label'>{}</label>"
    row += "<div class='noUi-handle'></div><div class='widget-readout'>1</div></div>"
    page.set_content("".join(f"<div class='course-panel'>{row.format(name)}</div>" for name in ("first", "second")))
    for name in ("first", "second"):
        page.evaluate(f"() => {{ const help = {{{name}: 'what it is'}};\n{script} }}")
    page.evaluate("() => document.querySelectorAll('.widget-readout').forEach(node => { node.textContent = '2'; })")
    values = "[...document.querySelectorAll('.noUi-handle')].map(handle => handle.ariaValueText).join()"
    page.wait_for_function(f"() => {values} === '2,2'", timeout=5_000)
    page.close()


def test_the_arrow_of_a_dropdown_is_visible_in_a_dark_theme(browser):
    page, css = browser.new_page(), (ASSETS / "widgets" / "panel.css").read_text(encoding="utf-8")
    of_ipywidgets = ".widget-dropdown > select { appearance: none; background-image: url(black.svg) }"
    page.set_content(
        f"<style>{of_ipywidgets}{css}</style><body data-jp-theme-light='false'><div class='course-panel'>"
        "<div class='widget-dropdown'><select><option>one</select></div></div>"
    )
    style = page.locator("select").evaluate("list => getComputedStyle(list)")
    assert [style[name] for name in ("appearance", "backgroundImage", "colorScheme")] == ["auto", "none", "dark"]
    page.close()


def test_a_panel_without_a_kernel_keeps_its_columns(browser):
    page, css = browser.new_page(), (ASSETS / "widgets" / "panel.css").read_text(encoding="utf-8")
    of_ipywidgets = ".jupyter-widgets-disconnected::before { content: 'x' }"
    page.set_content(
        f"<style>{of_ipywidgets}{css}</style><div class='course-panel jupyter-widgets-disconnected'>"
        "<div class='course-pair jupyter-widgets-disconnected'><p>base</p><p>tuned</p></div></div>"
    )
    base, tuned = (page.get_by_text(name).bounding_box() for name in ("base", "tuned"))
    assert base["y"] == tuned["y"] and base["x"] < tuned["x"]
    mark = "name => getComputedStyle(document.querySelector(name), '::before').content"
    assert [page.evaluate(mark, name) for name in (".course-panel", ".course-pair")] == ['"x"', "none"]
    page.close()


def test_every_control_can_be_reached_with_the_tab_key(notebooks):
    shown = Shown(notebooks["03"])
    shown.fold(False)
    shown.row("preset").locator("select").focus()
    inside = "() => document.activeElement.closest('.course-panel') !== null"
    reached = 0
    while reached < 100 and shown.page.evaluate(inside):
        shown.page.keyboard.press("Tab")
        reached += 1
    assert reached >= len(TrainingSettings.model_fields) + 4


@pytest.fixture(scope="module")
def papermill_run(notebooks, lab, notebook_03_until_trained):
    """Save a short run in the panel, and run the command that it shows in the background, up to the training."""
    shown = Shown(notebooks["03"])
    shown.choose("preset", "the parameters cell")
    shown.panel.get_by_text("Learning rate: cosine").wait_for()
    shown.type("run", "from-panel")
    shown.move("num_train_epochs", "0.1")
    shown.panel.get_by_text("for num_train_epochs = 0.1").wait_for()
    shown.button("Save as parameters").click()
    command = shown.panel.locator("code", has_text="papermill").inner_text()
    path = lab.runs / "from-panel" / "parameters.yaml"
    words = [
        str(notebook_03_until_trained) if word == str(find_notebook("03")) else word for word in shlex.split(command)
    ]
    programs = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    child = subprocess.Popen(
        words,
        cwd=ROOT,
        env={**lab.environment, "PATH": programs},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    yield path, command, child
    if child.poll() is None:
        child.kill()


def test_the_panel_is_saved_as_parameters(papermill_run):
    path, command, _ = papermill_run
    expected = TrainingSettings(run="from-panel", num_train_epochs=0.1)
    assert TrainingSettings(**yaml.safe_load(path.read_text(encoding="utf-8"))) == expected
    assert shlex.split(command)[0].endswith("papermill")
    assert command.endswith(f"-f {path}")


def test_a_run_can_be_started_stopped_and_resumed(notebooks, lab):
    shown = Shown(notebooks["03"])
    shown.choose("preset", "the parameters cell")
    shown.panel.get_by_text(f"for num_train_epochs = {TrainingSettings().num_train_epochs:g}").wait_for()
    shown.type("run", "by-button")
    shown.move("num_train_epochs", "0.3")
    shown.wait_for_status("run by-button: not started")
    shown.panel.get_by_text("for num_train_epochs = 0.3").wait_for()
    shown.button("Start").click()
    shown.wait_for_status(r"step \d+ of \d+")
    assert shown.row("run").locator("input").is_disabled(), "the panel is locked"
    assert shown.button("Suggest").is_disabled()
    shown.panel.get_by_role("img", name="Loss:").wait_for()
    shown.button("Stop").click()
    shown.wait_for_status(r"Stopped after step \d+ of \d+; a checkpoint is kept")
    assert shown.row("run").locator("input").is_enabled()
    assert any((lab.runs / "by-button/checkpoints").glob("checkpoint-*"))
    shown.button("Resume").click()
    shown.wait_for_status("run by-button: finished", seconds=300)
    assert (lab.runs / "by-button/model/model.safetensors").exists()
    assert shown.button("Start").is_disabled(), "a finished run is not trained again"


def test_an_error_is_shown_in_the_panel(notebooks):
    shown = Shown(notebooks["03"])
    shown.type("run", "<img src=x onerror='window.hacked = 1'>")
    shown.wait_for_status("Not possible: run = .* is not a plain name")
    assert not is_hacked(shown.page)
    shown.choose("preset", "guide")
    shown.wait_for_status("Learning rate: linear")


def test_notebook_4_runs_from_top_to_bottom(notebooks):
    assert notebooks["04"].wait() == []


def test_the_bars_follow_the_temperature(notebooks):
    shown = Shown(notebooks["04"])
    before = shown.panel.locator("table").all_inner_texts()
    handle = shown.handle("temperature")
    handle.focus()
    for _ in range(8):
        handle.press("ArrowRight")
    texts = "[...document.querySelectorAll('.course-panel table')].map(table => table.innerText).join()"
    shown.page.wait_for_function(f"before => {texts} !== before.join()", arg=before)
    assert float(shown.value("temperature")) == pytest.approx(EvaluationSettings().temperature + 8 * 0.05)


def test_markup_in_a_prompt_does_not_run(notebooks):
    shown = Shown(notebooks["04"])
    shown.type("prompt", EVIL)
    shown.type("seed", "7")
    shown.panel.locator(".course-text").first.get_by_text("window.hacked").first.wait_for()
    texts = shown.panel.locator(".course-text")
    assert EVIL in texts.nth(0).inner_text()
    assert texts.locator("img, script, svg, h1, strong, a").count() == 0
    assert not is_hacked(shown.page)


def test_both_models_are_streamed(notebooks):
    shown = Shown(notebooks["04"])
    texts = shown.panel.locator(".course-text")
    shown.type("prompt", "The Fox and the")
    texts.first.get_by_text("The Fox and the").wait_for()
    shown.move("temperature", ENDLESS)
    # Counted in the page: polling from here could miss most of a short text.
    shown.panel.evaluate(
        """panel => {
            window.streamed = [new Set(), new Set()];
            const note = () => panel.querySelectorAll(".course-text").forEach(
                (text, column) => window.streamed[column].add(text.innerText));
            new MutationObserver(note).observe(panel, {childList: true, subtree: true, characterData: true});
        }"""
    )
    shown.button("Generate").focus()
    shown.page.keyboard.press("Space")
    shown.page.wait_for_function("() => window.streamed.every(texts => texts.size > 4)")
    shown.button("Generate").click(trial=True)  # enabled again: both have ended
    assert "drawn" in shown.panel.inner_text()
    for text in texts.all_inner_texts():
        assert text.startswith("The Fox and the")


def test_stop_ends_generation(notebooks):
    shown = Shown(notebooks["04"])
    shown.move("temperature", ENDLESS)
    # Clicked in the page as soon as possible: from here the texts might end first.
    shown.button("Stop").evaluate(
        """stop => new MutationObserver((_, observer) => {
            if (stop.disabled) return;
            observer.disconnect();
            stop.click();
        }).observe(stop, {attributes: true})"""
    )
    shown.button("Generate").click()
    shown.wait_for_status("Stopped")
    assert shown.row("temperature").locator(".noUi-target").get_attribute("disabled") is None


@pytest.mark.parametrize("name", ["02", "03", "04"])
@pytest.mark.parametrize(("theme", "width"), [("JupyterLab Light", 1280), ("JupyterLab Dark", 1920)])
def test_a_panel_fits_the_page_in_both_themes(notebooks, name, theme, width):
    notebook = notebooks[name]
    notebook.page.set_viewport_size({"width": width, "height": 1500})
    notebook.set_theme(theme)
    shown = Shown(notebook)
    if name != "04":
        shown.fold(theme == "JupyterLab Light")
    if name == "03":
        shown.choose("preset", "rtx-4070-ti")
        shown.panel.get_by_text(GPT2_TAKES).wait_for()
        assert shown.row("preset").locator("select").input_value() == "rtx-4070-ti"
    if name == "04":  # a finished text of each model, for the picture in the guide
        shown.type("prompt", "The Fox and the")
        shown.type("seed", "42")
        shown.move("temperature", "1.00")
        shown.button("Generate").evaluate(  # ends when the button is enabled again
            """button => new Promise(end => {
                let hasBegun = false;
                new MutationObserver((_, observer) => {
                    hasBegun ||= button.disabled;
                    if (!hasBegun || button.disabled) return;
                    observer.disconnect();
                    end();
                }).observe(button, {attributes: true});
                button.click();
            })"""
        )
        shown.move("look at token", "6")
    notebook.page.wait_for_timeout(400)
    notebook.picture(f"panel-{name}-{theme.split()[1].lower()}-{width}", shown.panel)
    assert not scrolls_sideways(notebook.page)


def test_notebook_5_runs_from_top_to_bottom_or_shows_its_executed_cells(notebooks):
    assert notebooks["05"].wait() == []
    assert "Traceback" not in notebooks["05"].text()


def test_papermill_runs_the_saved_parameters(papermill_run, lab):
    _, _, child = papermill_run
    _, stderr = child.communicate(timeout=480)
    assert child.returncode == 0, stderr.decode()
    assert (lab.runs / "from-panel/training.json").exists()


def test_a_reloaded_page_shows_no_finished_progress_bar(lab, open_notebook):
    source = (
        "from helpers import display\ndisplay.QUIET_SECONDS = 0.01\n"
        "with display.progress_bar(4, unit='token') as bar:\n"
        "    for _ in range(4): __import__('time').sleep(0.2); bar.update()\n'done'"
    )
    write_notebook(lab.folder / "bar.ipynb", [source])
    notebook = open_notebook("bar.ipynb")
    notebook.run_all()
    assert notebook.wait() == []
    notebook.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    notebook.page.reload()
    notebook.page.locator(".jp-OutputArea-output", has_text="done").wait_for()
    notebook.page.get_by_text("Loading widget").wait_for(state="detached")
    shown = notebook.page.locator(".jp-OutputArea").inner_text()
    assert "Error displaying widget" not in shown
    assert "4/4" not in shown


def test_the_console_of_the_browser_shows_no_error(notebooks):
    assert {name: notebook.errors for name, notebook in notebooks.items() if notebook.errors} == {}
