"""The tokens equal those of `generate`, the candidates' probabilities those they are drawn with."""

import pytest
import torch

from helpers.evaluation import generate
from helpers.evaluation.sampling import candidates, encode_prompt, next_logits, sample_tokens
from helpers.settings import SettingsError


@pytest.mark.parametrize(
    "changes",
    [{}, {"seed": 7, "temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}, {"top_k": 5, "top_p": 0.5}],
)
def test_sample_tokens_draws_the_same_tokens_as_generate(model, tokenizer, sampling_settings, changes):
    sampling_settings = sampling_settings.model_copy(update=changes)
    prompt = encode_prompt(model, tokenizer, sampling_settings)
    tokens = [token for token, _ in sample_tokens(model, prompt, sampling_settings)]
    assert (
        tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)
        == generate(model, tokenizer, [sampling_settings.prompt], sampling_settings)[0][0].text
    )


def test_sampling_does_not_use_the_global_rng_state(model, tokenizer, sampling_settings):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    list(sample_tokens(model, tokenizer.encode("A"), sampling_settings))
    assert torch.equal(torch.rand(3), expected)


def test_logits_equal_one_forward_pass_over_the_previous_tokens(model, tokenizer, sampling_settings):
    ids = tokenizer.encode("The Fox")
    for token, logits in sample_tokens(model, ids, sampling_settings.model_copy(update={"max_new_tokens": 4})):
        torch.testing.assert_close(logits, next_logits(model, ids), atol=1e-4, rtol=1e-4)
        ids.append(token)


def test_a_low_temperature_raises_the_top_probability_and_a_high_one_lowers_it(model, tokenizer, sampling_settings):
    ids = tokenizer.encode("The")
    logits = next_logits(model, ids)
    plain = sampling_settings.model_copy(update={"top_p": 1.0, "repetition_penalty": 1.0})
    first = {
        t: candidates(logits, ids, tokenizer, plain.model_copy(update={"temperature": float(t)}))[0]
        for t in (0.5, 1, 2)
    }
    assert (
        first[0.5].drawn_probability > first[1].drawn_probability == first[1].probability > first[2].drawn_probability
    )
    by_hand = (logits[0] / 0.5).softmax(-1)[first[0.5].token].item()
    assert first[0.5].drawn_probability == pytest.approx(by_hand)


def test_a_token_cut_by_top_k_has_probability_0_and_an_included_token_is_shown(model, tokenizer, sampling_settings):
    ids = tokenizer.encode("The")
    top_2 = sampling_settings.model_copy(update={"top_k": 2})
    shown = candidates(next_logits(model, ids), ids, tokenizer, top_2, include=17)
    assert [one.drawn_probability > 0 for one in shown[:3]] == [True, True, False]
    assert shown[-1].token == 17


def test_a_prompt_that_is_too_long_is_refused(model, tokenizer, sampling_settings):
    with pytest.raises(SettingsError, match="together at most 256"):
        encode_prompt(model, tokenizer, sampling_settings.model_copy(update={"max_new_tokens": 1000}))
