"""The demo page in a real browser: served by this machine, and opened from a file without any server."""

import json
import re
import shutil
import time

import pytest

from helpers.data.sources.chat import as_question, question_frame
from helpers.files import environment_variables
from helpers.settings import TrainingSettings
from helpers.sharing import demo
from tests.browser.lab import PICTURES
from tests.sharing.serving import serving

pytestmark = pytest.mark.browser
EVIL = "<img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script> **bold**"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text_file):
    """Return a folder of runs with a short training run of the pocket model."""
    from helpers.training import fine_tune

    folder = tmp_path_factory.mktemp("demo")
    with environment_variables({"COURSE_RUNS": str(folder)}):
        settings = TrainingSettings(
            run="shown", source=str(text_file), block_size=32, num_train_epochs=0.2, sample_prompt=""
        )
        fine_tune(settings)
    return folder


@pytest.fixture
def run(trained, runs):
    shutil.copytree(trained, runs)
    return "shown"


@pytest.fixture
def open_page(browser):
    """Return a function that opens an address in a new page; no page may report an error or ask another host."""
    contexts, errors = [], []

    def opened(address, *, width=1280, height=1000, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: None if is_local(request.url) else errors.append(request.url))
        page.goto(address)
        page.wait_for_function("() => !document.querySelector('#start').disabled")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []


def is_error(message):
    return message.type == "error" and "400 (Bad Request)" not in message.text  # a refusal, which the page shows


def is_local(address):
    return address.startswith(("http://127.0.0.1:", "file:", "blob:", "data:"))


def answer_text(page, name="tuned"):
    return page.locator(f".answer[data-model={name}] .text").inner_text()


def wait_until_done(page):
    page.wait_for_function("() => /Done|Stopped/.test(document.querySelector('#status').textContent)")


def set_slider(page, name, value):
    page.locator(f"#{name}").evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", str(value)
    )


def picture(page, name):
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


@pytest.fixture
def server(run):
    with serving(run) as server:
        yield server


def test_two_models_generate_side_by_side_with_the_settings_of_the_sliders(open_page, server):
    page = open_page(server.address, permissions=["clipboard-read", "clipboard-write"])
    page.fill("#prompt", EVIL)
    set_slider(page, "max_new_tokens", 24)
    assert page.locator("#max_new_tokens + output").inner_text() == "24"
    page.click("#start")
    wait_until_done(page)
    first = {name: answer_text(page, name) for name in ("base", "tuned")}
    assert all(text.startswith(EVIL) and len(text) > len(EVIL) for text in first.values())
    assert first["base"] != first["tuned"]
    assert page.evaluate("() => window.hacked") is None
    page.click(".answer[data-model=tuned] .copy")
    page.wait_for_function("() => document.querySelector('#status').textContent === 'Copied.'")
    assert page.evaluate("() => navigator.clipboard.readText()") == page.locator(
        ".answer[data-model=tuned] .text"
    ).evaluate("node => node.textContent")
    picture(page, "demo-light-1280")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    wait_until_done(page)
    assert answer_text(page) == first["tuned"], "the same seed gives the same text"
    page.click(".card summary")
    assert "Limits" in page.locator(".card").inner_text()
    assert page.locator(".card table").count() > 1


def test_stop_ends_generation_and_an_invalid_setting_is_explained(open_page, server, monkeypatch):
    def write_without_end(model, ids, settings):
        while True:
            time.sleep(0.02)
            yield ids[0], None

    monkeypatch.setattr(demo, "sample_tokens", write_without_end)
    page = open_page(server.address)
    page.fill("#prompt", "fox")
    page.click("#start")
    page.wait_for_function("() => document.querySelector('.answer[data-model=base] .text').textContent.length > 20")
    page.click("#stop")
    page.wait_for_function("() => document.querySelector('#status').textContent === 'Stopped.'")
    stopped = answer_text(page, "base")
    page.wait_for_timeout(200)
    assert answer_text(page, "base") == stopped
    assert answer_text(page, "tuned") == "fox", "not started yet: one model generates after the other"
    page.evaluate("() => { document.querySelector('#temperature').type = 'text'; }")
    page.fill("#temperature", "0")
    page.click("#start")
    page.wait_for_function("() => /temperature = 0 is not/.test(document.querySelector('#status.error')?.textContent)")


def test_the_page_fits_a_phone_in_dark_mode(open_page, server):
    page = open_page(server.address, width=390, height=844, color_scheme="dark")
    page.click(".card summary")
    width = page.evaluate("() => document.documentElement.scrollWidth")
    assert width <= 390
    page.click(".card summary")
    set_slider(page, "max_new_tokens", 30)
    page.click("#start")
    wait_until_done(page)
    picture(page, "demo-dark-390")
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background)[:3])) < 60


def test_the_static_page_generates_without_a_server(open_page, run, chat_tokenizer, tmp_path):
    from helpers.model import load_tokenizer
    from helpers.sharing import write_static_page

    path = write_static_page(run, tmp_path)
    page = open_page(path.as_uri(), offline=True)
    page.fill("#prompt", EVIL)
    set_slider(page, "max_new_tokens", 24)
    page.click("#start")
    wait_until_done(page)
    text = answer_text(page)
    assert text.startswith(EVIL)
    n_tokens = len(load_tokenizer("pocket").encode(text.removeprefix(EVIL)))
    assert 0 < n_tokens <= 26  # fewer than requested if it draws the end of text
    assert page.evaluate("() => window.hacked") is None
    picture(page, "demo-static")
    html, frame = path.read_text(encoding="utf-8"), json.dumps(question_frame(chat_tokenizer))
    path.write_text(html.replace('"frame": ["", ""]', f'"frame": {frame}'), encoding="utf-8")
    page = open_page(path.as_uri(), offline=True)
    asked = as_question(long := "fox " * 300, chat_tokenizer)
    for prompt in (long, asked):
        page.fill("#prompt", prompt)
        page.click("#start")
        too_long = f"The prompt has {len(chat_tokenizer.encode(asked))} tokens and .* together at most 256"
        page.locator("#status.error", has_text=re.compile(too_long)).wait_for()
