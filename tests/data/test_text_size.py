import json

import pytest

from helpers.data.text_size import count_tokens
from helpers.settings import TrainingSettings, run_folder

ENGLISH = "about, from the size of the text if it is English"


def gpt2(**changes):
    return TrainingSettings(**{"model_name_or_path": "gpt2", "block_size": 1024} | changes)


def test_tokens_are_counted_once_the_data_is_prepared(tiny_settings):
    from helpers.data.preparation import prepare

    prepared = prepare(tiny_settings)
    train, validation = (prepared.facts["splits"][part]["tokens"] for part in ("train", "validation"))
    assert count_tokens(tiny_settings) == (train, validation, "counted")


@pytest.mark.parametrize(("block_size", "source"), [(16, "counted"), (32, "about, from blocks of 16")])
def test_tokens_of_blocks_without_labels_do_not_count(tmp_path, tiny_settings, block_size, source):
    from helpers.data.preparation import prepare

    rows = ({"prompt": f"{number} is a long question. " * 20, "completion": "Yes."} for number in range(40))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = {"source": str(tmp_path / "a.jsonl"), "train_on": "completion", "block_size": 16}
    settings = tiny_settings.model_copy(update=changes)
    prepared = prepare(settings)
    kept = 16 * len(prepared.blocks["train"])
    assert kept < prepared.facts["splits"]["train"]["tokens"] / 2
    held_out = 16 * len(prepared.blocks["validation"])
    assert count_tokens(settings.model_copy(update={"block_size": block_size})) == (kept, held_out, source)


def test_tokens_of_other_data_in_the_runs_folder_do_not_count(tiny_settings):
    from helpers.data.preparation import prepare

    prepare(tiny_settings)
    assert count_tokens(tiny_settings.model_copy(update={"test_share": 0.3})).source != "counted"


def test_the_estimate_for_the_fables_is_close_to_the_count():
    from helpers.data.preparation import prepare

    about = count_tokens(TrainingSettings())
    splits = prepare(TrainingSettings()).facts["splits"]
    assert about[:2] == pytest.approx((splits["train"]["tokens"], splits["validation"]["tokens"]), rel=0.1)


def test_wikitext_has_its_published_token_count_and_other_hub_data_sets_a_million():
    assert count_tokens(TrainingSettings.from_preset("guide")) == (2_400_000, 250_000, "about, as published")
    pocket = TrainingSettings.from_preset("guide", model_name_or_path="pocket", block_size=256)
    assert count_tokens(pocket).train == pytest.approx(1.5 * 2_400_000, rel=0.1), "its tokens are shorter"
    tokens, held_out, source = count_tokens(gpt2(source="somebody/texts"))
    assert (tokens, held_out, "million" in source) == (1_000_000, 125_000, True)


def test_published_tokens_are_not_used_for_another_source_or_split():
    settings = TrainingSettings.from_preset("guide", source="fables")
    assert count_tokens(settings) == count_tokens(settings.model_copy(update={"source_config": ""}))
    one_part = TrainingSettings.from_preset("guide", source_split="test")
    assert count_tokens(one_part).source != "about, as published"


@pytest.mark.parametrize(("name", "factor"), [("a.txt", 1), ("a.jsonl", 1), ("a.txt.gz", 3), ("a.csv.zst", 3)])
def test_tokens_are_estimated_for_every_kind_of_file(tmp_path, name, factor):
    (tmp_path / name).write_bytes(b"x" * 50_000)
    tokens, _, source = count_tokens(gpt2(source=str(tmp_path / name)))
    assert tokens == pytest.approx(factor * 0.8 * 50_000 / 4.3, abs=1)
    assert source.startswith("about")


def test_tokens_of_a_saved_data_set_are_estimated_from_all_of_it(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict({"text": ["x" * 1000] * 430})
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "saved")
    assert count_tokens(gpt2(source=str(tmp_path / "saved"))).train == pytest.approx(160_000, rel=0.02)


def test_a_relative_path_is_resolved_in_the_callers_folder(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("x" * 43_000)
    monkeypatch.chdir(tmp_path)
    assert count_tokens(gpt2(source="README.md")) == (8000, 1000, ENGLISH)


def test_the_estimate_for_the_python_reference_is_close_to_the_count():
    from helpers.data.preparation import prepare

    settings = TrainingSettings(source="python-reference", near_duplicates="keep")
    about = count_tokens(settings).train
    assert about == pytest.approx(prepare(settings).facts["splits"]["train"]["tokens"], rel=0.4)


def test_tokens_are_limited_by_max_tokens(tmp_path):
    wikitext = TrainingSettings.from_preset("guide", max_tokens=1_000_000)
    assert count_tokens(wikitext) == (800_000, 100_000, "as max_tokens leaves")
    assert count_tokens(wikitext.model_copy(update={"max_tokens": 2_800_000}))[:2] == (2_240_000, 250_000)
    assert count_tokens(gpt2(source="somebody/texts", max_tokens=5_000_000)).train == 4_000_000
    (tmp_path / "a.txt").write_text("x" * 43_000)
    assert count_tokens(gpt2(source=str(tmp_path), max_tokens=5_000_000)).train == 8000


def test_a_missing_source_counts_as_a_million_tokens():
    assert "million" in count_tokens(gpt2(source="missing.txt")).source


def test_a_damaged_count_is_not_an_error(tiny_settings):
    folder = run_folder(tiny_settings.run) / "data"
    folder.mkdir(parents=True)
    (folder / "data.json").write_text("{")
    assert count_tokens(tiny_settings).source != "counted"


def test_a_stream_validates_on_a_share_of_its_stored_beginning():
    stream = gpt2(source="somebody/texts", streaming=True, max_tokens=10**9)
    assert count_tokens(stream) == (10**9, 200_000, "as max_tokens says")
