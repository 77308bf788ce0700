import copy
import json
import math
import shutil
from contextlib import nullcontext

import pytest
import torch

from helpers.evaluation import generation
from helpers.evaluation.generation import (
    DecodingReport,
    Sample,
    distinct_n,
    generate,
    measure_samples,
    repeated_n,
)
from helpers.model import load_model
from helpers.settings import _MIN_TEMPERATURE, EvaluationSettings, SettingsError

GREEDY = {"do_sample": False}


def test_batched_prompts_generate_the_same_text_as_single_prompts(tiny):
    settings = EvaluationSettings(max_new_tokens=12)
    prompts = ["The fox", "An old owl came down from the", "No"]
    together = generate(*tiny, prompts, settings, **GREEDY)
    assert together == [generate(*tiny, [prompt], settings, **GREEDY)[0] for prompt in prompts]
    assert all(samples[0].text.startswith(prompt) for samples, prompt in zip(together, prompts, strict=True))


def test_greedy_decoding_takes_the_most_probable_token(tiny):
    model, tokenizer = tiny
    ids = tokenizer.encode("The fox")
    for _ in range(6):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    settings = EvaluationSettings(max_new_tokens=6, repetition_penalty=1)
    assert list(generate(*tiny, ["The fox"], settings, **GREEDY)[0][0].token_ids) == ids[-6:]


def test_the_seed_determines_the_samples_without_changing_the_global_rng_state(tiny):
    settings = EvaluationSettings(max_new_tokens=12, num_return_sequences=3)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, same = (generate(*tiny, ["The fox"], settings) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    other = generate(*tiny, ["The fox"], settings.model_copy(update={"seed": 1}))
    assert one == same != other
    assert len(one[0]) == 3


@pytest.mark.parametrize("changes", [{}, {"num_beams": 3}])
def test_sampling_and_concurrent_random_draws_do_not_affect_each_other(tiny, monkeypatch, changes):
    settings = EvaluationSettings(max_new_tokens=12, num_return_sequences=3)
    expected = generate(*tiny, ["The fox"], settings, **changes)
    drawn = []

    class Training:  # in another thread, between two tokens
        def update(self):
            drawn.append(torch.rand(1))

    monkeypatch.setattr(generation, "progress_bar", lambda *_, **__: nullcontext(Training()))
    torch.manual_seed(1)
    assert generate(*tiny, ["The fox"], settings, **changes) == expected
    torch.manual_seed(1)
    assert drawn == [torch.rand(1) for _ in drawn]
    assert len(drawn) == 12


def test_prompts_keep_their_order_across_batches(tiny, monkeypatch):
    settings = EvaluationSettings(max_new_tokens=4, num_return_sequences=2)
    prompts = [f"The {animal}" for animal in ("fox", "owl", "hen", "ram", "cat")]
    monkeypatch.setattr(generation, "sequences_at_once", lambda *_: 4)
    by_prompt = generate(*tiny, prompts, settings)
    assert [[sample.prompt for sample in samples] for samples in by_prompt] == [[prompt] * 2 for prompt in prompts]


@pytest.mark.parametrize(
    ("changes", "n_rows"), [({}, [2, 2, 1] * 2), ({"num_beams": 3, "num_return_sequences": 3}, [3, 3])]
)
def test_samples_that_exceed_one_batch_are_drawn_in_parts(tiny, monkeypatch, changes, n_rows):
    settings = EvaluationSettings(max_new_tokens=4, num_return_sequences=5)
    monkeypatch.setattr(generation, "sequences_at_once", lambda *_: 2)
    batches, generate_with = [], tiny[0].generate

    def counted(**options):
        batches.append(generate_with(**options))
        return batches[-1]

    monkeypatch.setattr(tiny[0], "generate", counted)
    by_prompt = generate(*tiny, ["The fox", "The owl"], settings, **changes)
    assert [len(rows) for rows in batches] == n_rows
    flat = [tuple(row) for rows in batches for row in rows[:, -4:].tolist()]
    assert [sample.token_ids for samples in by_prompt for sample in samples] == flat
    assert len(set(flat[:5])) > 2, "each part draws new samples instead of repeating the first"


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"min_p": 0.9}, {"max_length": 9}, {"bad_words_ids": [[199]]}])
@pytest.mark.parametrize("changes", [GREEDY, {}])
def test_the_published_generation_config_is_ignored(tiny, tiny_model, tmp_path, capfd, changes, how):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(how | {"no_repeat_ngram_size": 2}))
    settings = EvaluationSettings(max_new_tokens=12)
    expected = generate(*tiny, ["The fox"], settings, **changes)
    assert generate(load_model(str(tmp_path / "model")), tiny[1], ["The fox"], settings, **changes) == expected
    assert capfd.readouterr().err == "", "no warning about two lengths"


def test_a_sample_records_whether_it_stopped_or_was_cut(tiny):
    model, tokenizer = tiny
    settings = EvaluationSettings(max_new_tokens=5)
    (cut,) = generate(model, tokenizer, ["The fox"], settings, **GREEDY)[0]
    assert not cut.stopped
    assert len(cut.token_ids) == 5
    ends_at_once = {"sequence_bias": [[[tokenizer.eos_token_id], 1e9]]}
    (stopped,) = generate(model, tokenizer, ["The fox"], settings, **GREEDY, **ends_at_once)[0]
    assert (stopped.stopped, stopped.continuation, stopped.token_ids) == (True, "", ())
    assert stopped.text == "The fox"


def test_an_empty_prompt_starts_a_new_document(tiny):
    settings = EvaluationSettings(max_new_tokens=4)
    from_end = generate(*tiny, [tiny[1].eos_token], settings, **GREEDY)[0][0]
    assert generate(*tiny, [""], settings, **GREEDY)[0][0].token_ids == from_end.token_ids


def test_a_lone_surrogate_in_a_prompt_is_replaced(tiny):
    # JSON or a command line in another encoding can contain one, and no tokenizer accepts it
    settings = EvaluationSettings(max_new_tokens=4)
    half, replaced = (generate(*tiny, [f"The fox {mark}"], settings, **GREEDY) for mark in ("\ud83d", "\ufffd"))
    assert half == replaced


class TestBadInput:
    @pytest.mark.parametrize(("prompt", "max_new_tokens"), [("The fox", 64), ("The fox went home. " * 40, 1)])
    def test_prompt_and_new_tokens_beyond_the_models_positions(self, tiny, prompt, max_new_tokens):
        with pytest.raises(SettingsError, match=r"together at most 64, the model's positions\. Shorten the prompt"):
            generate(*tiny, [prompt], EvaluationSettings(max_new_tokens=max_new_tokens))

    @pytest.mark.parametrize("prompts", [[], "The fox", ["The fox", None]])
    def test_prompts_that_are_not_a_list_of_strings(self, tiny, prompts):
        with pytest.raises(SettingsError, match="must be a list of at least one text"):
            generate(*tiny, prompts, EvaluationSettings(max_new_tokens=4))

    def test_a_non_finite_weight(self, tiny):
        broken = copy.deepcopy(tiny[0])
        with torch.no_grad():
            broken.transformer.ln_f.bias[0] = math.nan
        with pytest.raises(SettingsError, match=r"weights transformer.ln_f.bias hold"):
            generate(broken, tiny[1], ["The fox"], EvaluationSettings(max_new_tokens=4))


def test_sample_metrics_match_a_hand_calculation():
    samples = [
        Sample("p", "x", (1, 2, 1, 2, 1, 2, 1, 2), stopped=True),  # (1,2,1,2) and (2,1,2,1), again and again
        Sample("p", "y", (3, 4, 5, 6), stopped=False),
    ]
    assert measure_samples(samples) == {
        "distinct_1": 6 / 12, "distinct_2": 5 / 10, "repeated_4": (3 / 5 + 0) / 2, "mean_tokens": 6,
        "stopped_share": 0.5,
    }  # fmt: skip
    assert distinct_n([[1]], 2) == 0
    assert repeated_n([[1], []], 4) == 0


def test_samples_are_escaped_in_html():
    sample = Sample("<b>", "</td><script>", (1,), stopped=False)
    report = DecodingReport({"<i>": [sample]}, EvaluationSettings(), sample)
    shown = report._repr_html_()
    assert "&lt;b&gt;&lt;/td&gt;&lt;script&gt;" in shown
    assert "<script>" not in shown
    assert "<i>" not in shown


def test_a_prompt_that_ends_in_a_space_gives_a_warning(tiny):
    settings = EvaluationSettings(prompt="The fox ", max_new_tokens=2, num_return_sequences=1)
    with pytest.warns(UserWarning, match="The prompt 'The fox ' ends in a space"):
        generate(*tiny, [settings.prompt], settings)
    generate(*tiny, ["a row of a text "], settings)


def test_the_lowest_temperature_equals_greedy_decoding(model, tokenizer, sampling_settings):
    least = sampling_settings.model_copy(update={"temperature": _MIN_TEMPERATURE})
    greedy = generate(model, tokenizer, ["The"], least, do_sample=False)
    assert generate(model, tokenizer, ["The"], least) == greedy
