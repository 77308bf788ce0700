"""The playground without a browser."""

import pytest

from helpers.evaluation import generate
from helpers.widgets import Playground


@pytest.fixture
def playground(model, tokenizer, sampling_settings):
    return Playground({"base": model, "tuned": model}, tokenizer, sampling_settings)


def test_both_models_are_streamed_token_by_token(playground, model, tokenizer, sampling_settings):
    seen = []
    playground.columns["tuned"].bars.observe(lambda change: seen.append(change.new), "value")
    playground.start.click()
    playground.thread.join()
    lengths = [len(column.tokens) for column in playground.columns.values()]
    assert len(seen) >= lengths[1] > 3, "a token at a time"
    text = generate(model, tokenizer, [sampling_settings.prompt], sampling_settings)[0][0].text
    texts = [tokenizer.decode([*c.prompt, *c.tokens], skip_special_tokens=True) for c in playground.columns.values()]
    assert texts == [text, text]
    assert not playground.start.disabled
    assert playground.token_slider.max == lengths[0]
    playground.token_slider.value = 3
    assert "token 3:" in playground.columns["base"].bars.value
    assert "drawn</b>" in playground.columns["base"].bars.value


def test_a_chat_model_is_asked_the_question_that_its_control_shows(model, chat_tokenizer, sampling_settings):
    asked = "User: Who drank?\n\nAssistant:"
    shown = Playground({"tuned": model}, chat_tokenizer, sampling_settings.model_copy(update={"prompt": asked}))
    assert shown.controls["prompt"].value == "Who drank?"
    assert chat_tokenizer.decode(shown.columns["tuned"].prompt) == asked
    shown.controls["prompt"].value = "And then? "
    assert chat_tokenizer.decode(shown.columns["tuned"].prompt) == "User: And then?\n\nAssistant:"
    assert shown._message.value == ""


def test_stop_ends_generation_after_the_current_token(playground):
    playground.fill({"max_new_tokens": 200})
    stop_at_five = playground.columns["base"].text
    stop_at_five.observe(lambda _: len(playground.columns["base"].tokens) == 5 and playground.stop.click(), "value")
    playground.begin()
    playground.thread.join()
    assert [len(column.tokens) for column in playground.columns.values()] == [5, 0]
    assert "Stopped" in playground._message.value


def test_one_model_at_a_time_is_on_the_gpu_and_a_slider_recomputes_nothing(playground, fake_card):
    playground.start.click()
    playground.thread.join()
    assert (fake_card.n_visits, fake_card.most, fake_card.present) == (2, 1, set())
    playground.token_slider.value = 3
    playground.controls["temperature"].value = 0.9
    assert fake_card.n_visits == 2


def test_looking_at_a_token_after_the_start_does_not_put_the_other_model_on_the_gpu(playground, monkeypatch):
    playground.fill({"max_new_tokens": 6})
    playground.token_slider.max = 6
    text = playground.columns["base"].text
    text.observe(lambda _: playground.is_locked and playground.token_slider.set_state({"value": 3}), "value")
    calls = []
    monkeypatch.setattr("helpers.widgets.playground.next_logits", lambda *given: calls.append(given) or 1 / 0)
    playground.begin()
    playground.thread.join()
    assert calls == []
    assert playground.token_slider.value == len(playground.columns["base"].tokens)


def test_a_prompt_that_is_too_long_is_refused(playground):
    playground.controls["prompt"].value = "well " * 300
    assert "together at most 256" in playground._message.value
    assert "together at most 256" in playground.static_html()
    assert {part.value for column in playground.columns.values() for part in (column.text, column.bars)} == {""}
    playground.begin()
    assert playground.thread is None


def test_a_warning_about_the_prompt_is_still_shown_after_generation(playground):
    playground.fill({"prompt": "The Fox ", "max_new_tokens": 2})
    playground.begin()
    playground.thread.join()
    assert "ends in a space" in playground._message.value


def test_markup_in_a_prompt_is_escaped(playground, markup):
    playground.controls["prompt"].value = markup
    shown = [part.value for column in playground.columns.values() for part in (column.text, column.bars)]
    assert any("&lt;script&gt;" in text for text in shown)
    assert not any("<script" in text for text in [*shown, playground.static_html()])


def test_a_page_without_a_kernel_shows_the_candidates_of_both_models(playground):
    shown = playground.static_html()
    assert shown.count("candidates for token 1") == 2
    assert "temperature" in shown
