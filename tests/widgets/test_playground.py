"""The playground without a browser: its tokens are those of `generate`, its bars the chances they were drawn with."""

import pytest
import torch

from helpers.evaluation import generate
from helpers.model import load_model, load_tokenizer
from helpers.settings import EvaluationSettings, SettingsError
from helpers.widgets import Playground
from helpers.widgets.sampling import candidates, draw, encode_prompt, next_logits

MARKUP = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def model():
    return load_model("pocket").eval()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("pocket")


@pytest.fixture
def settings():
    return EvaluationSettings(max_new_tokens=30, num_return_sequences=1)


@pytest.fixture
def playground(model, tokenizer, settings):
    return Playground({"base": model, "tuned": model}, tokenizer, settings)


@pytest.mark.parametrize(
    "changes",
    [{}, {"seed": 7, "temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}, {"top_k": 5, "top_p": 0.5}],
)
def test_the_tokens_are_those_that_generate_draws(model, tokenizer, settings, changes):
    settings = settings.model_copy(update=changes)
    prompt = encode_prompt(model, tokenizer, settings)
    tokens = [token for token, _ in draw(model, prompt, settings)]
    assert (
        tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)
        == generate(model, tokenizer, [settings.prompt], settings)[0][0].text
    )


def test_drawing_leaves_the_notebooks_random_numbers_alone(model, tokenizer, settings):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    list(draw(model, tokenizer.encode("A"), settings))
    assert torch.equal(torch.rand(3), expected)


def test_the_logits_of_a_token_are_those_of_a_pass_over_what_is_before(model, tokenizer, settings):
    ids = tokenizer.encode("The Fox")
    for token, logits in draw(model, ids, settings.model_copy(update={"max_new_tokens": 4})):
        torch.testing.assert_close(logits, next_logits(model, ids), atol=1e-4, rtol=1e-4)
        ids.append(token)


def test_temperature_makes_the_likeliest_likelier_or_levels_the_field(model, tokenizer, settings):
    ids = tokenizer.encode("The")
    logits = next_logits(model, ids)
    plain = settings.model_copy(update={"top_p": 1.0, "repetition_penalty": 1.0})
    first = {
        t: candidates(logits, ids, tokenizer, plain.model_copy(update={"temperature": float(t)}))[0]
        for t in (0.5, 1, 2)
    }
    assert first[0.5].drawn_chance > first[1].drawn_chance == first[1].chance > first[2].drawn_chance
    by_hand = (logits[0] / 0.5).softmax(-1)[first[0.5].token].item()
    assert first[0.5].drawn_chance == pytest.approx(by_hand)


def test_what_top_k_cuts_cannot_be_drawn_and_what_was_drawn_is_shown(model, tokenizer, settings):
    ids = tokenizer.encode("The")
    found = candidates(next_logits(model, ids), ids, tokenizer, settings.model_copy(update={"top_k": 2}), drawn=17)
    assert [one.drawn_chance > 0 for one in found[:3]] == [True, True, False]
    assert found[-1].token == 17


def test_both_are_streamed_token_by_token_and_end_alike(playground, model, tokenizer, settings):
    seen = []
    playground.columns["tuned"].bars.observe(lambda change: seen.append(change.new), "value")
    playground.start.click()
    playground.thread.join()
    lengths = [len(column.tokens) for column in playground.columns.values()]
    assert len(seen) >= lengths[1] > 3, "a token at a time"
    text = generate(model, tokenizer, [settings.prompt], settings)[0][0].text
    found = [tokenizer.decode([*c.prompt, *c.tokens], skip_special_tokens=True) for c in playground.columns.values()]
    assert found == [text, text]
    assert not playground.start.disabled
    assert playground.look.max == lengths[0]
    playground.look.value = 3
    assert "token 3:" in playground.columns["base"].bars.value
    assert "drawn</b>" in playground.columns["base"].bars.value


def test_stops_after_the_token_it_is_at(playground):
    playground.fill({"max_new_tokens": 200})
    stop_at_five = playground.columns["base"].text
    stop_at_five.observe(lambda _: len(playground.columns["base"].tokens) == 5 and playground.stop.click(), "value")
    playground.begin()
    playground.thread.join()
    assert [len(column.tokens) for column in playground.columns.values()] == [5, 5]
    assert "Stopped" in playground._error.value


def test_a_prompt_too_long_is_one_sentence(playground, model, tokenizer, settings):
    playground.controls["prompt"].value = "well " * 300
    assert "together at most 256" in playground._error.value
    playground.begin()
    assert playground.thread is None
    with pytest.raises(SettingsError, match="together at most 256"):
        encode_prompt(model, tokenizer, settings.model_copy(update={"max_new_tokens": 1000}))


def test_markup_in_a_prompt_is_shown_and_not_run(playground):
    playground.controls["prompt"].value = MARKUP
    shown = [part.value for column in playground.columns.values() for part in (column.text, column.bars)]
    assert any("&lt;script&gt;" in text for text in shown)
    assert not any("<script" in text for text in [*shown, playground.static_html()])


def test_without_a_front_end_shows_the_candidates_of_both(playground):
    shown = playground.static_html()
    assert shown.count("candidates for token 1") == 2
    assert "temperature" in shown
