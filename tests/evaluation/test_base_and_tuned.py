import json
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from helpers.data.run_data import open_prepared
from helpers.data.sources.chat import render_chat
from helpers.evaluation import base_and_tuned, record
from helpers.evaluation.base_and_tuned import (
    Comparison,
    compare_decodings,
    compare_with_base,
    fill_prompt,
    load_base,
    load_tuned,
    measure_copying,
    measure_forgetting,
    measure_published_protocol,
    opening,
)
from helpers.evaluation.generation import DECODINGS, Sample, generate
from helpers.evaluation.scoring import Score, score
from helpers.model import load_tokenizer
from helpers.plots import plot_novelty
from helpers.settings import EvaluationSettings, SettingsError, run_folder
from helpers.training.fine_tuning import fine_tune

SETTINGS = EvaluationSettings(
    run="tiny", stride=16, prompt="The fox", max_new_tokens=8, copy_samples=3, general_documents=2
)


def make_comparison(base_nats, tuned_nats, *, tokens=10, n_bytes=50):
    """Return a comparison on documents of the same size."""
    n = len(base_nats)
    base, tuned = (
        Score(np.array(nats), np.full(n, tokens), np.full(n, n_bytes), 10 * n, "ab" * 32, name, "weights 1", 8, 16)
        for name, nats in (("base", base_nats), ("tuned", tuned_nats))
    )
    return Comparison("<fables>", [f"Title {i}\nText" for i in range(n)], base, tuned, seed=0)


def test_both_models_score_the_same_tokens_and_the_file_contains_the_protocol(tiny_run):
    comparison = compare_with_base(SETTINGS)
    assert comparison.base.n_tokens == comparison.tuned.n_tokens
    assert comparison.tuned.perplexity < comparison.base.perplexity
    stored = record.read("tiny")["test"]
    assert stored == json.loads(json.dumps(comparison.to_dict()))
    assert stored["text_sha256"] == open_prepared("tiny").facts["splits"]["test"]["sha256"]
    assert "context 32, stride 16" in stored["tuned"]["protocol"]
    assert stored["tuned"]["model"] == "run tiny"
    assert stored["base"]["model"] != stored["tuned"]["model"]
    assert stored["base"]["revision"] != stored["tuned"]["revision"]


def test_evaluation_json_has_the_documented_shape(tiny_run):
    compare_with_base(SETTINGS)
    stored = record.read("tiny")
    assert list(stored) == ["version", "run", "test", "forgetting", "published_protocol", "copying", "speech"]
    test = stored["test"]
    assert list(test) == ["source", "verdict", "text_sha256", "base", "tuned", "difference", "documents"]
    assert set(test["tuned"]) == {
        "perplexity", "bits_per_byte", "word_perplexity", "loss_nats", "n_documents", "n_tokens", "n_bytes", "n_words",
        "stride", "context", "model", "revision", "text_sha256", "protocol", "perplexity_interval",
        "bits_per_byte_interval",
    }  # fmt: skip
    assert set(test["difference"]) == {
        "bits_per_byte", "perplexity_ratio", "interval", "perplexity_ratio_interval", "confidence", "resamples"
    }  # fmt: skip
    documents = test["documents"]
    assert [set(row) for row in documents] == [{"sha256", "bytes", "tokens", "base_nats", "tuned_nats"}] * 4
    assert sum(row["tuned_nats"] for row in documents) / sum(row["tokens"] for row in documents) == pytest.approx(
        math.log(test["tuned"]["perplexity"])
    )
    assert test["tuned"]["perplexity_interval"] is None, "four documents are too few"


def test_every_section_is_written_to_the_record_and_the_model_card(tiny_run, fake_card):
    measure = (compare_with_base, measure_forgetting, measure_copying, compare_decodings)
    test, forgetting, copying, speech = results = [function(SETTINGS) for function in measure]
    stored = record.read("tiny")
    for name, result in zip(("test", "forgetting", "copying", "speech"), results, strict=True):
        assert stored[name] == json.loads(json.dumps(result.to_dict()))
    card = (tiny_run.model_folder / "README.md").read_text(encoding="utf-8")
    assert test.tuned.protocol in card
    assert forgetting.tuned.protocol in card
    assert "## Copying" in card
    assert f"{copying.rows[0]['novel_4']:.3g}" in card
    assert speech.rows[0]["sample"] in card
    assert (fake_card.most, fake_card.present) == (1, set()), "one model at a time: not every GPU has room for two"


def test_difference_and_interval_match_a_hand_calculation():
    comparison = make_comparison([10.0, 20.0, 30.0, 40.0] * 2, [8.0, 18.0, 28.0, 38.0] * 2)  # each saves the same
    saved = 2 / math.log(2) / 50
    difference = comparison.difference
    assert difference["bits_per_byte"] == pytest.approx(saved)
    assert difference["interval"] == pytest.approx([saved, saved]), "what both models share on a document cancels out"
    assert difference["perplexity_ratio"] == pytest.approx(math.exp(-0.2))
    assert difference["perplexity_ratio_interval"] == pytest.approx([math.exp(-0.2)] * 2)
    for row in comparison.rows:
        for name in ("perplexity", "bits_per_byte"):
            low, high = row[f"{name}_interval"]
            assert low < row[name] < high, "each model alone still depends on the documents"


@pytest.mark.parametrize(
    ("tuned", "words"),
    [
        (
            [8.0, 17.0, 25.0, 36.0],
            "On 8 documents of <fables> the tuned model needs 0.620 bits per byte and the base model 0.721: 0.101 "
            "fewer (95% interval of the gain 0.076 to 0.126), so it is better on this text.",
        ),
        (
            [12.0, 23.0, 35.0, 44.0],
            ": 0.101 more (95% interval of the gain -0.126 to -0.076), so it is worse on this text.",
        ),
        ([9.98, 19.98, 29.98, 39.98], ": 0.0005 fewer (95% interval of the gain 0.0006 to 0.0006), so it is better"),
        ([9.99, 19.99, 29.99, 39.99], "a difference of less than 0.001, which is too small to matter"),
        ([5.0, 27.0, 24.0, 45.0], "The interval includes 0, so this may be due to the choice of documents"),
    ],
)
def test_the_verdict_follows_from_the_interval(tuned, words):
    comparison = make_comparison([10.0, 20.0, 30.0, 40.0] * 2, tuned * 2)
    assert words in comparison.verdict
    assert "&lt;fables&gt;" in comparison._repr_html_()
    assert "protocol documents" in comparison._repr_html_()


def test_fewer_than_six_documents_give_no_interval():
    for n_documents, words in ((1, "Fewer than 6 documents give no interval"), (5, "may be due to chance")):
        comparison = make_comparison([10.0] * n_documents, [8.0] * n_documents)
        assert comparison.difference["interval"] is None
        assert comparison.rows[0]["perplexity_interval"] is None
        assert words in comparison.verdict
        assert "[" not in comparison._repr_html_()
    six = make_comparison([10.0] * 6, [8.0] * 6)
    assert six.difference["interval"][0] > 0
    assert "it is better" in six.verdict
    silent = make_comparison([10.0] * 5 + [0.0], [8.0] * 5 + [0.0])
    silent.base.document_tokens[5] = 0
    assert silent.difference["interval"] is None, "a dialogue without an answer does not count"


def test_the_rows_are_named_base_and_tuned():
    assert [row["model"] for row in make_comparison([10.0, 20.0], [8.0, 9.0]).rows] == ["base", "tuned"]


def test_the_verdict_on_a_continuous_text_says_what_was_drawn():
    documents = make_comparison([50.0] * 300, [45.0] * 300)
    passages = replace(documents, base=replace(documents.base, protocol_name="passages"))
    assert "300 passages" in passages.verdict
    assert "interval of the gain over 10 stretches of them, because neighbours are alike, " in passages.verdict


def test_a_dialogue_without_an_answer_does_not_affect_the_interval():
    scored = make_comparison([100.0, 80.0] * 3, [50.0, 40.0] * 3)
    silent = make_comparison([100.0, 80.0] * 3 + [0.0], [50.0, 40.0] * 3 + [0.0])
    for model in (silent.base, silent.tuned):
        model.document_tokens[6] = model.document_bytes[6] = 0
    assert silent.difference == scored.difference
    assert scored.difference["interval"], "six documents are enough for an interval"
    assert silent.rows[1]["perplexity_interval"] == scored.rows[1]["perplexity_interval"]


def test_documents_are_sorted_by_their_gain():
    rows = make_comparison([10.0, 20.0, 30.0], [9.0, 12.0, 31.0]).gains
    assert [row["document"] for row in rows] == ["Title 1", "Title 0", "Title 2"]
    assert rows[0]["gain"] == pytest.approx(8 / math.log(2) / 50)
    assert rows[0]["gain"] == pytest.approx(rows[0]["base"] - rows[0]["tuned"])
    assert rows[2]["gain"] < 0


def test_an_empty_document_has_a_gain():
    comparison = make_comparison([10.0, 20.0], [9.0, 12.0])
    comparison.base.document_bytes[0] = 0  # it has an end-of-text
    assert [row["gain"] for row in comparison.gains] == pytest.approx([8 / math.log(2) / 50, 1 / math.log(2)][::-1])


def test_a_perplexity_too_large_for_a_float_can_be_shown_and_stored():
    comparison = make_comparison([1e4, 2e4], [10.0, 20.0])
    json.dumps(comparison.to_dict(), allow_nan=False)
    assert "too large" in comparison._repr_html_()


def test_perplexity_near_one_shows_three_digits_and_word_perplexity_at_most_four():
    shown = make_comparison([400.0], [1.25])._repr_html_()
    assert ">1.13</td>" in shown
    assert ">2.354e+17</td>" in shown


def test_forgetting_is_measured_on_your_own_text(tiny_run, tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("Rain fell.\n\nSnow fell.\n\nHail fell.", encoding="utf-8")
    comparison = measure_forgetting(SETTINGS.model_copy(update={"general_source": str(path)}))
    assert comparison.source == "own.txt", "the path is private"
    assert set(comparison.documents) < {"Rain fell.", "Snow fell.", "Hail fell."}
    assert len(comparison.documents) == 2


def test_forgetting_documents_are_sampled_with_the_seed_from_the_test_split(tiny_run, tmp_path, monkeypatch):
    def compare_on(documents, settings, *, source):
        return SimpleNamespace(texts=documents["text"][:], to_dict=lambda: None)

    def draw(source, seed):
        return measure_forgetting(SETTINGS.model_copy(update={"general_source": str(source), "seed": seed})).texts

    monkeypatch.setattr(base_and_tuned, "_compare_on", compare_on)
    (tmp_path / "own.txt").write_text("\n\n".join(f"Day {n}." for n in range(30)), encoding="utf-8")
    assert draw(tmp_path / "own.txt", 1) == draw(tmp_path / "own.txt", 1) != draw(tmp_path / "own.txt", 2)
    (tmp_path / "parts").mkdir()
    for part in ("train", "test"):
        (tmp_path / f"parts/{part}.txt").write_text(f"One of {part}.\n\nTwo of {part}.", encoding="utf-8")
    assert set(draw(tmp_path / "parts", 1)) == {"One of test.", "Two of test."}


@pytest.mark.parametrize(("name", "words"), [("gone.txt", "cannot be read"), ("empty.txt", "holds no text")])
def test_an_unusable_general_source_is_named_in_the_error(tiny_run, tmp_path, name, words):
    (tmp_path / "empty.txt").write_text(" \n")
    settings = SETTINGS.model_copy(update={"general_source": str(tmp_path / name)})
    with pytest.raises(SettingsError, match=rf"general_source = '.*{name}' {words}"):
        measure_forgetting(settings)


def test_forgetting_is_not_measured_on_the_training_text(tiny_run, tiny_settings):
    with pytest.raises(SettingsError, match="is the text that run 'tiny' is trained on"):
        measure_forgetting(SETTINGS.model_copy(update={"general_source": tiny_settings.source}))


def test_the_published_protocol_joins_the_raw_rows_of_the_test_split(tiny_settings, tmp_path, monkeypatch):
    rows = ["", " = A heading = \n", "", " The fox went home over the hill . \n", " = A heading = \n", " No . \n"] * 6
    (folder := tmp_path / "rows").mkdir()
    for part in ("train", "validation", "test"):
        of_part = Dataset.from_dict({"text": [row.replace("fox", f"fox of {part}") for row in rows]})
        of_part.to_parquet(folder / f"{part}.parquet")
    settings = tiny_settings.model_copy(update={"source": str(folder), "document_separator": "row", "block_size": 8})
    fine_tune(settings)
    assert len(open_prepared("tiny").documents["test"]) < len(rows), "repeated rows are left out of the documents"
    known = {(settings.model_name_or_path, settings.source, ""): {64: 29.94}}
    monkeypatch.setattr("helpers.evaluation.base_and_tuned._PUBLISHED", known)
    table = measure_published_protocol(SETTINGS)
    assert [(row["stride"], row["published"]) for row in table] == [(64, 29.94), (32, None)]
    assert record.read("tiny")["published_protocol"] == table
    texts = [row.replace("fox", "fox of test") for row in rows]
    for row in table:
        for name, load in (("base", load_base), ("tuned", load_tuned)):
            expected = score(*load("tiny"), texts, stride=row["stride"], protocol="transformers")
            assert row[name] == pytest.approx(expected.perplexity, rel=1e-6)


def test_a_source_without_its_own_test_split_has_no_published_protocol(tiny_run):
    with pytest.raises(SettingsError, match=r"joins the rows of a data set's own test part, and text\.txt has none"):
        measure_published_protocol(SETTINGS)


def test_an_unset_prompt_becomes_the_opening_of_a_test_document(tiny_run):
    filled = fill_prompt(SETTINGS.model_copy(update={"prompt": ""}))
    first = open_prepared("tiny").documents["test"][0]["text"]
    assert filled.prompt == " ".join(first.split()[:5])
    assert fill_prompt(SETTINGS) == SETTINGS


def test_a_chat_models_prompt_is_a_question(chat_tokenizer, monkeypatch):
    monkeypatch.setattr(base_and_tuned, "load_run_tokenizer", lambda _: chat_tokenizer)
    monkeypatch.setattr(base_and_tuned, "read_run_settings", lambda _: None)
    filled = fill_prompt(SETTINGS.model_copy(update={"prompt": "Who drank all of the water in the well?"}))
    assert filled.prompt == "User: Who drank all of the water in the well?\n\nAssistant:"
    conversation = f"{filled.prompt} The fox.\n\nUser: Why?\n\nAssistant: Thirst."
    assert opening(conversation, chat_tokenizer, n_words=3) == filled.prompt
    long = opening(f"User: {'fox ' * 100}\n\nAssistant: The fox.", chat_tokenizer, n_words=3)
    assert re.fullmatch(r"User: (fox )+fo\w?\n\nAssistant:", long)
    assert 64 <= len(chat_tokenizer.encode(long)) <= 64 + len(chat_tokenizer.encode("\n\nAssistant:"))
    assert opening("No answer in it.", chat_tokenizer, n_words=2) == "No answer"


@pytest.mark.parametrize(
    ("text", "n_words", "expected"),
    [
        ("The Fox\n\nOnce a fox saw a crow.", 5, "The Fox\n\nOnce a fox"),
        ("The Fox", 5, "The Fox"),
        ("\u72d0\u72f8" * 500, 5, ("\u72d0\u72f8" * 11)[:21]),  # three bytes each, and 64 tokens
        (f"{'x' * 4000} y", 3, "x" * 64),
    ],
)
def test_opening_is_cut_by_words_or_by_tokens_if_there_are_no_spaces(tiny_run, text, n_words, expected):
    _, tokenizer = load_tuned("tiny")
    assert opening(text, tokenizer, n_words=n_words) == expected


def test_the_control_of_a_sample_is_as_long_as_it_even_if_it_stopped_early(tiny_run, monkeypatch):
    samples = [[Sample("The", "", (5,) * length, stopped=True)] for length in (3, 0, 8)]
    monkeypatch.setattr(base_and_tuned, "generate", lambda *_, **__: samples)
    report = measure_copying(SETTINGS)
    assert [len(match.lengths) for match in report.samples] == [3, 0, 8]
    assert [len(match.lengths) for match in report.control] == [3, 0, 8]


def test_a_prompt_cut_inside_a_character_still_fits_the_model(tiny_run, monkeypatch):
    texts = Dataset.from_dict({"text": ["\u72d0\u72f8" * 40]})  # a character is three tokens, a prompt eight
    prepared = SimpleNamespace(documents={"test": texts, "train": texts})
    monkeypatch.setattr(base_and_tuned, "open_prepared", lambda run: prepared)
    report = measure_copying(SETTINGS.model_copy(update={"max_new_tokens": 56}))  # 8 less than the model's positions
    assert len(report.samples) == 1


def test_a_dialogues_question_is_the_prompt_and_its_answer_the_control():
    tokenizer = load_tokenizer("pocket")
    messages = [("user", "Who?"), ("assistant", "A fox."), ("user", "Where?"), ("assistant", "At a well.")]
    chat = render_chat([{"role": role, "content": content} for role, content in messages])
    prompt, answer = base_and_tuned._split_off_prompt(chat, tokenizer)
    assert tokenizer.decode(prompt) == "User: Who?\n\nAssistant:"
    assert tokenizer.decode(answer) == " A fox."
    chat = render_chat([{"role": role, "content": content} for role, content in messages[1:]], "plain")
    assert [tokenizer.decode(ids) for ids in base_and_tuned._split_off_prompt(chat, tokenizer)] == [
        "\nWhere?\n",
        "At a well.",
    ]


def test_documents_too_short_for_a_prompt_give_an_empty_report_with_the_reason(tiny_run, monkeypatch):
    monkeypatch.setattr("helpers.evaluation.base_and_tuned._PROMPT_TOKENS", 60)
    report = measure_copying(SETTINGS)
    assert report.rows == report.samples == []
    assert "Not measured: no test document is longer than the prompt" in report._repr_html_()
    assert plot_novelty(report.novelty_curves()).get_title() == "Not measured"


def test_every_decoding_method_continues_the_same_prompts(tiny_run):
    settings = SETTINGS.model_copy(update={"max_new_tokens": 6})
    speech = compare_decodings(settings)
    assert [row["decoding"] for row in speech.rows] == list(DECODINGS)
    openings = [" ".join(text.split()[:3]) for text in open_prepared("tiny").documents["test"]["text"][:3]]
    prompts = [settings.prompt, *openings]
    assert speech.to_dict()["prompts"] == list(dict.fromkeys(prompts))
    for decoding, samples in speech.samples.items():
        n_each = 1 if DECODINGS[decoding].get("do_sample") is False else settings.num_return_sequences
        assert [sample.prompt for sample in samples] == [prompt for prompt in prompts for _ in range(n_each)]
    by_prompt = generate(*load_tuned("tiny"), prompts, settings)
    assert speech.samples["these settings"] == [sample for samples in by_prompt for sample in samples]


def test_decoding_methods_can_be_replaced_by_your_own(tiny_run):
    speech = compare_decodings(SETTINGS, decodings={"cold": {"temperature": 0.1}})
    assert [row["decoding"] for row in record.read("tiny")["speech"]["decodings"]] == list(speech.samples) == ["cold"]


class TestBadModelFolder:
    def test_a_run_without_a_model(self):
        with pytest.raises(SettingsError, match="no final model yet"):
            load_tuned("some-run")

    def test_a_run_that_does_not_exist(self):
        for measure in (compare_with_base, measure_forgetting, measure_copying, compare_decodings):
            with pytest.raises(SettingsError, match=r"'tiny'"):
                measure(SETTINGS)
        with pytest.raises(SettingsError, match="no run 'some-run'"):
            load_base("some-run")

    def test_deleting_the_model_keeps_the_metrics(self, tiny_run):
        compare_with_base(SETTINGS)
        before = record.read("tiny")
        shutil.rmtree(tiny_run.model_folder)
        with pytest.raises(SettingsError, match="no final model yet"):
            compare_with_base(SETTINGS)
        assert record.read("tiny") == before

    def test_truncated_weights(self, tiny_run):
        weights = tiny_run.model_folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        with pytest.raises(SettingsError, match="cut short"):
            compare_with_base(SETTINGS)

    def test_a_model_of_another_architecture(self, tiny_run):
        (tiny_run.model_folder / "config.json").write_text('{"model_type": "llama"}')
        with pytest.raises(SettingsError, match="is a llama model"):
            compare_with_base(SETTINGS)

    def test_a_model_without_its_tokenizer(self, tiny_run):
        (tiny_run.model_folder / "tokenizer.json").unlink()
        with pytest.raises(SettingsError, match=r"tokenizer"):
            compare_with_base(SETTINGS)
        assert not (run_folder("tiny") / "evaluation.json").exists()
