import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

from helpers.data.preparation import open_prepared
from helpers.evaluation import record as figures
from helpers.evaluation.base_and_tuned import (
    Comparison,
    Score,
    compare,
    forgetting,
    generate,
    load_base,
    load_tuned,
    measure_copying,
    score,
    speaking,
)
from helpers.settings import EvaluationSettings, SettingsError, run_folder

SETTINGS = EvaluationSettings(run="tiny", stride=16, max_new_tokens=8, copy_samples=3, general_documents=2)


def compared(base_nats, tuned_nats, *, tokens=10, n_bytes=50):
    """Return a comparison on documents of equal size."""
    n = len(base_nats)
    base, tuned = (
        Score(np.array(nats), np.full(n, tokens), np.full(n, n_bytes), 10 * n, "ab" * 32, name, "weights 1", 8, 16)
        for name, nats in (("base", base_nats), ("tuned", tuned_nats))
    )
    return Comparison("mine", "<fables>", [f"Title {i}\nText" for i in range(n)], base, tuned, seed=0)


def test_both_models_read_the_same_tokens_and_the_file_keeps_the_protocol(tiny_run):
    comparison = compare(SETTINGS)
    assert comparison.base.n_tokens == comparison.tuned.n_tokens
    assert comparison.tuned.perplexity < comparison.base.perplexity
    stored = figures.read("tiny")["test"]
    assert stored == json.loads(json.dumps(comparison.to_dict()))
    assert stored["text_sha256"] == open_prepared("tiny").facts["splits"]["test"]["sha256"]
    assert "context 32, stride 16" in stored["tuned"]["protocol"]
    assert stored["tuned"]["model"] == "run tiny"
    assert stored["base"]["model"] != stored["tuned"]["model"]
    assert stored["base"]["revision"] != stored["tuned"]["revision"]


def test_evaluation_json_has_the_documented_shape(tiny_run):
    compare(SETTINGS)
    stored = figures.read("tiny")
    assert list(stored) == ["version", "run", "test", "forgetting", "copying", "speech"]
    test = stored["test"]
    assert list(test) == ["source", "text_sha256", "base", "tuned", "difference", "documents"]
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
    low, high = test["tuned"]["perplexity_interval"]
    assert low < test["tuned"]["perplexity"] < high


def test_every_section_is_kept_and_stands_in_the_model_card(tiny_run):
    found = compare(SETTINGS), forgetting(SETTINGS), measure_copying(SETTINGS), speaking(SETTINGS)
    stored = figures.read("tiny")
    for name, one in zip(("test", "forgetting", "copying", "speech"), found, strict=True):
        assert stored[name] == json.loads(json.dumps(one.to_dict()))
    card = (tiny_run.model_folder / "README.md").read_text()
    assert found[0].tuned.protocol in card
    assert found[1].tuned.protocol in card
    assert "## Copying" in card
    assert f"{found[2].rows[0]['novel_4']:.3g}" in card
    assert found[3].rows[0]["sample"] in card


def test_the_difference_and_its_interval_by_hand():
    comparison = compared([10.0, 20.0, 30.0, 40.0], [8.0, 18.0, 28.0, 38.0])  # each document saves the same
    saved = 2 / math.log(2) / 50
    difference = comparison.difference
    assert difference["bits_per_byte"] == pytest.approx(saved)
    assert difference["interval"] == pytest.approx([saved, saved]), "paired: what the documents share does not count"
    assert difference["perplexity_ratio"] == pytest.approx(math.exp(-0.2))
    low, high = comparison.rows[1]["perplexity_interval"]
    assert low < comparison.tuned.perplexity < high, "each model by itself still depends on the documents"


@pytest.mark.parametrize(
    ("tuned", "words"),
    [
        ([8.0, 17.0, 25.0, 36.0], "so it is better there"),
        ([12.0, 23.0, 35.0, 44.0], "so it is worse there"),
        ([5.0, 27.0, 24.0, 45.0], "which may be chance"),
    ],
)
def test_the_verdict_follows_from_the_interval(tuned, words):
    comparison = compared([10.0, 20.0, 30.0, 40.0], tuned)
    assert words in comparison.verdict
    assert "&lt;fables&gt;" in comparison._repr_html_()
    assert "protocol documents" in comparison._repr_html_()


def test_the_rows_are_named_by_their_part():
    assert [row["model"] for row in compared([10.0, 20.0], [8.0, 9.0]).rows] == ["base", "tuned"]


def test_one_document_has_no_interval():
    comparison = compared([10.0], [5.0])
    assert comparison.difference["interval"] is None
    assert comparison.rows[0]["perplexity_interval"] is None
    assert "one document tells nothing about others" in comparison.verdict
    assert "[" not in comparison._repr_html_()


def test_the_documents_stand_in_the_order_of_their_gain():
    rows = compared([10.0, 20.0, 30.0], [9.0, 12.0, 31.0]).gains
    assert [row["document"] for row in rows] == ["Title 1", "Title 0", "Title 2"]
    assert rows[0]["gain"] == pytest.approx(8 / math.log(2) / 50)
    assert rows[0]["gain"] == pytest.approx(rows[0]["base"] - rows[0]["tuned"])
    assert rows[2]["gain"] < 0


def test_a_perplexity_beyond_all_numbers_breaks_neither_table_nor_file():
    comparison = compared([1e4, 2e4], [10.0, 20.0])
    json.dumps(comparison.to_dict(), allow_nan=False)
    assert "too large" in comparison._repr_html_()


def test_forgetting_reads_the_readers_own_text(tiny_run, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("Rain fell.\n\nSnow fell.\n\nHail fell.", encoding="utf-8")
    found = forgetting(SETTINGS.model_copy(update={"general_source": str(own)}))
    assert found.source == "own.txt", "the path is nobody's business"
    assert set(found.documents) < {"Rain fell.", "Snow fell.", "Hail fell."}
    assert len(found.documents) == 2


def test_what_was_forgotten_does_not_show_on_the_text_that_was_learnt(tiny_run, tiny_settings):
    with pytest.raises(SettingsError, match="is what run 'tiny' was trained on"):
        forgetting(SETTINGS.model_copy(update={"general_source": tiny_settings.source}))


def test_the_control_is_what_really_follows_and_is_cut_to_the_same_length(tiny_run):
    report = measure_copying(SETTINGS)
    assert len(report.samples) == len(report.control) == 3
    assert all(len(match.lengths) <= 8 for match in (*report.samples, *report.control))


def test_texts_too_short_for_a_prompt_are_said_so(tiny_run, monkeypatch):
    monkeypatch.setattr("helpers.evaluation.base_and_tuned._PROMPT_TOKENS", 60)
    with pytest.raises(SettingsError, match="more than 60 tokens"):
        measure_copying(SETTINGS)


def test_the_names_others_import_are_those_of_their_modules():
    from helpers.evaluation import generation, scoring

    assert (generate, score, Score) == (generation.generate, scoring.score, scoring.Score)


class TestBadModelFolder:
    def test_a_run_without_a_model(self):
        with pytest.raises(SettingsError, match="no final model yet"):
            load_tuned("mine")

    def test_a_run_that_is_not_there(self):
        for measure in (compare, forgetting, measure_copying, speaking):
            with pytest.raises(SettingsError, match=r"'tiny'"):
                measure(SETTINGS)
        with pytest.raises(SettingsError, match="no run 'mine'"):
            load_base("mine")

    def test_a_model_that_is_gone_leaves_the_figures(self, tiny_run):
        compare(SETTINGS)
        before = figures.read("tiny")
        shutil.rmtree(tiny_run.model_folder)
        with pytest.raises(SettingsError, match="no final model yet"):
            compare(SETTINGS)
        assert figures.read("tiny") == before

    def test_a_model_that_is_half_written(self, tiny_run):
        weights = tiny_run.model_folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        with pytest.raises(SettingsError, match="half-written"):
            compare(SETTINGS)

    def test_a_model_of_another_architecture(self, tiny_run):
        (tiny_run.model_folder / "config.json").write_text('{"model_type": "llama"}')
        with pytest.raises(SettingsError, match="is a llama model"):
            compare(SETTINGS)

    def test_a_model_without_its_tokenizer(self, tiny_run):
        (tiny_run.model_folder / "tokenizer.json").unlink()
        with pytest.raises(SettingsError, match=r"tokenizer"):
            compare(SETTINGS)
        assert not (run_folder("tiny") / "evaluation.json").exists()


def test_a_score_is_what_it_was_when_it_was_made(tiny):
    result = score(*tiny, ["A fox."], stride=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.stride = 4
