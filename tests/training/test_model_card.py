import json

import mistune
import pytest
from huggingface_hub import ModelCard

from helpers.evaluation import compare_with_base, record
from helpers.settings import EvaluationSettings, TrainingSettings
from helpers.training.model_card import card_text, write_model_card

FACTS = {
    "splits": {name: {"documents": 2, "bytes": 30, "sha256": name[0] * 64} for name in ("train", "validation", "test")}
}


def loaded(settings):
    return ModelCard(card_text(settings, FACTS), ignore_metadata_errors=False)


def test_the_card_of_a_new_run_names_its_settings_and_text(tiny_run, tiny_settings):
    text = (tiny_run.model_folder / "README.md").read_text(encoding="utf-8")
    assert "| `learning_rate` | 0.001 |" in text
    assert "text.txt" in text
    assert tiny_settings.source not in text, "a local path is private"
    assert tiny_settings.model_name_or_path not in text
    assert "Not evaluated yet." in text
    assert "It was measured on nothing yet." in text
    assert "## Limits" in text


def test_the_card_says_that_an_adapter_was_merged():
    assert "with a LoRA adapter of rank 8, merged into its weights. It loads" in card_text(
        TrainingSettings(lora_r=8), FACTS
    )
    assert "It loads" in card_text(TrainingSettings(), FACTS)
    assert "LoRA adapter" not in card_text(TrainingSettings(), FACTS)


def test_the_metadata_follows_the_format_of_the_hub():
    settings = TrainingSettings(model_name_or_path="openai-community/gpt2", source="Salesforce/wikitext")
    data = loaded(settings).data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "openai-community/gpt2",
        "datasets": ["Salesforce/wikitext"],
        "tags": ["gpt2"],
    }


def test_models_and_texts_outside_the_hub_are_not_in_the_metadata():
    data = loaded(TrainingSettings()).data.to_dict()
    assert "base_model" not in data
    assert "datasets" not in data
    assert data["language"] == "en"
    assert "base_model" not in loaded(
        TrainingSettings(model_name_or_path="openai-community/gpt2", from_scratch=True)
    ).data.to_dict()  # fmt: skip


def test_the_metrics_are_results_that_the_hub_can_read(tiny_run):
    comparison = compare_with_base(EvaluationSettings(run="tiny", stride=16))
    card = ModelCard.load(tiny_run.model_folder / "README.md")
    assert "It was measured on text like `text.txt`, and on nothing else." in card.text, "forgetting was not measured"
    results = card.data.eval_results
    assert [result.metric_type for result in results] == ["perplexity", "bits_per_byte"]
    assert results[0].metric_value == pytest.approx(comparison.tuned.perplexity, abs=1e-3)
    assert comparison.tuned.protocol in results[0].metric_name
    assert results[0].dataset_type == "text.txt"


def test_the_bits_saved_are_the_difference_between_the_displayed_values(tiny_run):
    compare_with_base(EvaluationSettings(run="tiny", stride=16))
    path = tiny_run.folder / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["test"]["base"]["bits_per_byte"], evaluation["test"]["tuned"]["bits_per_byte"] = 2.0575, 3.2624
    path.write_text(json.dumps(evaluation))
    text = write_model_card("tiny").read_text()
    assert "| 2.058" in text
    assert "| 3.262" in text
    assert "Bits per byte saved: -1.204" in text


def test_writing_again_changes_nothing_and_leaves_no_other_file(tiny_run):
    path = tiny_run.model_folder / "README.md"
    before = path.read_text(encoding="utf-8")
    assert write_model_card("tiny") == path
    assert path.read_text(encoding="utf-8") == before
    assert not list(tiny_run.model_folder.glob("*.new"))


def test_a_run_without_a_model_has_no_card():
    assert write_model_card("mine") is None


def test_no_copied_tokens_are_shown_as_0_and_unmeasured_values_as_empty():
    copying = {"rows": [{"text": "samples", "longest_tokens": 0, "novel_8": None}]}
    assert "| samples | 0 |  |" in card_text(TrainingSettings(), FACTS, {"copying": copying})


def test_a_sample_cannot_break_out_of_its_code_block(tiny_run):
    sample = {"decoding": "greedy", "sample": "````\n# Not a heading\n---"}
    record.write_section("tiny", "speech", {"settings": {"seed": 1}, "decodings": [sample]})
    text = (tiny_run.model_folder / "README.md").read_text(encoding="utf-8")
    assert "`````text\n````\n# Not a heading\n---\n`````" in text


def test_a_value_with_bars_and_line_breaks_stays_in_its_cell():
    assert "| `sample_prompt` | a \\| b c |" in card_text(TrainingSettings(sample_prompt="a | b\nc"), FACTS)


@pytest.mark.parametrize(
    "source",
    ["letters/mine.txt", "letters\\mine.txt", "C:/letters/mine.txt", "C:\\letters\\mine.txt", "/gone/mine.txt"],
)
def test_a_path_is_shortened_even_if_missing_or_from_another_system(source):
    settings = TrainingSettings(source=source, model_name_or_path=source.replace("mine.txt", "deep/model"))
    text = card_text(settings, FACTS)
    assert "letters" not in text
    assert "gone" not in text
    assert not {"datasets", "base_model"} & set(loaded(settings).data.to_dict())


def test_a_folder_that_looks_like_a_hub_id_is_not_one(tmp_path, monkeypatch):
    (tmp_path / "letters" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    settings = TrainingSettings(source="letters/mine", model_name_or_path="letters/mine")
    assert not {"datasets", "base_model"} & set(loaded(settings).data.to_dict())
    assert "letters" not in card_text(settings, FACTS)


def test_names_and_settings_cannot_become_html_or_links():
    evil = "`<img src=x onerror=alert(1)> [x](javascript:alert(2))"
    settings = TrainingSettings(source=f"/x/{evil}.txt", sample_prompt=evil, model_name_or_path=f"/y/{evil}")
    values = {"perplexity": 3.0, "bits_per_byte": 1.0, "word_perplexity": 9.0, "protocol": evil}
    score = values | {"text_sha256": "0" * 64, "perplexity_interval": None, "bits_per_byte_interval": None}
    difference = {"confidence": 0.95, "resamples": 9, "interval": None}
    section = {"source": evil, "difference": difference, "base": score, "tuned": score}
    evaluation = {
        "test": section,
        "forgetting": section,
        "copying": {"rows": [{"text": evil, evil: 3}]},
        "speech": {"settings": {"seed": evil}, "decodings": [{"decoding": evil, "sample": evil}]},
    }
    body = card_text(settings, FACTS, evaluation).split("\n---\n", 1)[1]
    html = mistune.create_markdown(escape=False, plugins=["table"])(body)
    assert html.count("alert(1)") == body.count("alert(1)") > 8
    assert "<img" not in html
    assert "<a " not in html
