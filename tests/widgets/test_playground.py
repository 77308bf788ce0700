"""The playground without a browser: its tokens are those of `generate`, its bars the probabilities behind them."""

import pytest
import torch

from helpers.evaluation import generate
from helpers.model import load_model, load_tokenizer
from helpers.settings import EvaluationSettings, SettingsError
from helpers.widgets import Playground
from helpers.widgets.playground import candidates, encode_prompt, next_logits, sample_tokens


@pytest.fixture(scope="module")
def model():
    return load_model("pocket").eval()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("pocket")


@pytest.fixture
def settings():
    return EvaluationSettings(prompt="The Fox and the", max_new_tokens=30, num_return_sequences=1)


@pytest.fixture
def playground(model, tokenizer, settings):
    return Playground({"base": model, "tuned": model}, tokenizer, settings)


@pytest.mark.parametrize(
    "changes",
    [{}, {"seed": 7, "temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}, {"top_k": 5, "top_p": 0.5}],
)
def test_the_tokens_are_those_of_generate(model, tokenizer, settings, changes):
    settings = settings.model_copy(update=changes)
    prompt = encode_prompt(model, tokenizer, settings)
    tokens = [token for token, _ in sample_tokens(model, prompt, settings)]
    assert (
        tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)
        == generate(model, tokenizer, [settings.prompt], settings)[0][0].text
    )


def test_sampling_does_not_use_the_random_state_of_the_notebook(model, tokenizer, settings):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    list(sample_tokens(model, tokenizer.encode("A"), settings))
    assert torch.equal(torch.rand(3), expected)


def test_the_logits_of_a_token_are_those_of_one_forward_pass_over_the_tokens_before(model, tokenizer, settings):
    ids = tokenizer.encode("The Fox")
    for token, logits in sample_tokens(model, ids, settings.model_copy(update={"max_new_tokens": 4})):
        torch.testing.assert_close(logits, next_logits(model, ids), atol=1e-4, rtol=1e-4)
        ids.append(token)


def test_a_low_temperature_raises_the_top_probability_and_a_high_one_lowers_it(model, tokenizer, settings):
    ids = tokenizer.encode("The")
    logits = next_logits(model, ids)
    plain = settings.model_copy(update={"top_p": 1.0, "repetition_penalty": 1.0})
    first = {
        t: candidates(logits, ids, tokenizer, plain.model_copy(update={"temperature": float(t)}))[0]
        for t in (0.5, 1, 2)
    }
    assert (
        first[0.5].drawn_probability > first[1].drawn_probability == first[1].probability > first[2].drawn_probability
    )
    by_hand = (logits[0] / 0.5).softmax(-1)[first[0.5].token].item()
    assert first[0.5].drawn_probability == pytest.approx(by_hand)


def test_a_token_cut_by_top_k_has_probability_0_and_an_included_token_is_shown(model, tokenizer, settings):
    ids = tokenizer.encode("The")
    top_2 = settings.model_copy(update={"top_k": 2})
    shown = candidates(next_logits(model, ids), ids, tokenizer, top_2, include=17)
    assert [one.drawn_probability > 0 for one in shown[:3]] == [True, True, False]
    assert shown[-1].token == 17


def test_both_models_are_streamed_token_by_token(playground, model, tokenizer, settings):
    seen = []
    playground.columns["tuned"].bars.observe(lambda change: seen.append(change.new), "value")
    playground.start.click()
    playground.thread.join()
    lengths = [len(column.tokens) for column in playground.columns.values()]
    assert len(seen) >= lengths[1] > 3, "a token at a time"
    text = generate(model, tokenizer, [settings.prompt], settings)[0][0].text
    texts = [tokenizer.decode([*c.prompt, *c.tokens], skip_special_tokens=True) for c in playground.columns.values()]
    assert texts == [text, text]
    assert not playground.start.disabled
    assert playground.look.max == lengths[0]
    playground.look.value = 3
    assert "token 3:" in playground.columns["base"].bars.value
    assert "drawn</b>" in playground.columns["base"].bars.value


def test_stop_ends_it_after_the_present_token(playground):
    playground.fill({"max_new_tokens": 200})
    stop_at_five = playground.columns["base"].text
    stop_at_five.observe(lambda _: len(playground.columns["base"].tokens) == 5 and playground.stop.click(), "value")
    playground.begin()
    playground.thread.join()
    assert [len(column.tokens) for column in playground.columns.values()] == [5, 0]
    assert "Stopped" in playground._message.value


def test_one_model_at_a_time_is_on_the_card_and_a_slider_computes_nothing_again(playground, fake_card):
    playground.start.click()
    playground.thread.join()
    assert (fake_card.n_visits, fake_card.most, fake_card.present) == (2, 1, set())
    playground.look.value = 3
    playground.controls["temperature"].value = 0.9
    assert fake_card.n_visits == 2


def test_a_prompt_that_is_too_long_is_refused_in_one_sentence(playground, model, tokenizer, settings):
    playground.controls["prompt"].value = "well " * 300
    assert "together at most 256" in playground._message.value
    assert "together at most 256" in playground.static_html()
    assert {part.value for column in playground.columns.values() for part in (column.text, column.bars)} == {""}
    playground.begin()
    assert playground.thread is None
    with pytest.raises(SettingsError, match="together at most 256"):
        encode_prompt(model, tokenizer, settings.model_copy(update={"max_new_tokens": 1000}))


def test_what_is_wrong_with_a_prompt_is_still_said_after_it_was_continued(playground):
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
