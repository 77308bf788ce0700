import pytest

from helpers.paths import COMMAND
from helpers.studies.study_file import read_study
from tests.studies.conftest import error_of


@pytest.mark.parametrize(
    ("varied", "changes", "words"),
    [
        ("seed: [1, 2]", "", "seed changes the text that is measured"),
        ("source: [fables, python-reference]", "", f"with source under `settings`; `{COMMAND} compare"),
        ("validation_share: {low: 0.1, high: 0.2}", "", "validation_share changes the text"),
        ("block_size: [64, 128]", "", "longer blocks give a smaller loss"),
        ("block_size: [64, 128]", "optimise: perplexity\nprune: true\n", "longer blocks give a smaller loss"),
        ("stride: [64, 128]", "optimise: bits_per_byte\n", "stride changes how the metric is measured"),
        ("model_name_or_path: [pocket, openai-community/gpt2]", "", "models of different vocabularies"),
    ],
)
def test_varying_a_setting_that_makes_trials_incomparable_is_refused(tmp_path, varied, changes, words):
    (tmp_path / "a.yaml").write_text(f"preset: pocket\nvary:\n  {varied}\n{changes}")
    sentence = error_of(tmp_path / "a.yaml")
    assert sentence.startswith(f"a.yaml, vary.{varied.partition(':')[0]}: ")
    assert words in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "text",
    [
        "vary: {seed: [1]}",
        "vary: {block_size: [64, 128]}\noptimise: bits_per_byte",
        "vary: {model_name_or_path: [pocket, openai-community/gpt2]}\noptimise: bits_per_byte",
        "vary: {model_name_or_path: [distilbert/distilgpt2, openai-community/gpt2]}",
    ],
)
def test_settings_that_keep_trials_comparable_can_be_varied(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    assert read_study(tmp_path / "a.yaml").points


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "vary: {seed: [1]}\nnotebooks: [3]\noptimise: perplexity\n",
            'measures perplexity, so every trial would fail: add "04"',
        ),
        ("vary: {seed: [1]}\nnotebooks: []\noptimise: perplexity\n", "the notebooks [] measures perplexity"),
        ("vary: {seed: [1]}\nnotebooks: []\nsettings: {stride: 8}\n", "None of the notebooks [] takes 'stride'"),
        ("vary: {seed: [1]}\nnotebooks: [2]\n", "notebooks: None of the notebooks 02 measures eval_loss"),
    ],
)
def test_a_metric_or_setting_that_no_notebook_uses_is_refused(tmp_path, text, words):
    (tmp_path / "a.yaml").write_text(text)
    assert words in error_of(tmp_path / "a.yaml")
