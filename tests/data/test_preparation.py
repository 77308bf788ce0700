import json
import os
import shutil
import sys
import time
from pathlib import Path
from statistics import median

import pytest

from helpers.data.facts import documents_text
from helpers.data.in_memory import load_documents, split_documents, token_blocks
from helpers.data.preparation import _budget, prepare
from helpers.data.run_data import open_prepared
from helpers.data.sources import source_path
from helpers.data.writing import Staging
from helpers.files import read_json
from helpers.settings import DataSettings, SettingsError
from tests.forked import start_forked


def test_prepare_writes_what_it_returns(runs, tiny_settings):
    prepared = prepare(tiny_settings)
    stored = json.loads((runs / "tiny/data/data.json").read_text())
    assert stored == prepared.facts
    train = stored["splits"]["train"]
    assert train["documents"] == 32
    assert train["bytes"] == sum(len(text.encode()) for text in prepared.documents["train"]["text"])
    assert train["tokens"] == len(prepared.blocks["train"]) * 32 + train["tokens_dropped"]
    n_tokens = [n for part in prepared.documents.values() for n in part["n_tokens"]]
    assert prepared.facts["documents"]["median_tokens"] == int(median(n_tokens))
    assert not any("max_tokens" in note for note in prepared.facts["notes"])


def test_prepare_does_nothing_when_the_settings_are_the_same(runs, tiny_settings):
    prepare(tiny_settings)
    before = (runs / "tiny/data/data.json").stat().st_mtime_ns
    prepare(tiny_settings)
    assert (runs / "tiny/data/data.json").stat().st_mtime_ns == before


def test_prepare_starts_again_when_the_file_has_changed(tmp_path, text_file, tiny_settings):
    copy = tmp_path / "copy.txt"
    copy.write_text(text_file.read_text(encoding="utf-8"))
    settings = tiny_settings.model_copy(update={"source": str(copy)})
    first = prepare(settings).facts["splits"]["train"]["sha256"]
    copy.write_text(text_file.read_text(encoding="utf-8").replace("fox", "wolf"))
    assert prepare(settings).facts["splits"]["train"]["sha256"] != first


def test_the_data_of_a_trained_run_is_not_replaced(tiny_run, tiny_settings):
    with pytest.raises(SettingsError, match="was trained on other data"):
        prepare(tiny_settings.model_copy(update={"block_size": 16}))


def test_the_data_of_a_trained_run_is_rebuilt_only_from_the_same_text(tiny_run, tiny_settings):
    (next((tiny_run.folder / "data/blocks/train").glob("*.arrow"))).write_bytes(b"")
    with pytest.raises(SettingsError, match=r"are damaged .*delete the folder .*data, and run notebook 2"):
        prepare(tiny_settings)
    before = read_json(tiny_run.folder / "data/data.json")
    shutil.rmtree(tiny_run.folder / "data")
    for other in ({"seed": 7}, {"block_size": 16}, {"source": "fables"}):
        with pytest.raises(SettingsError, match="was trained on other data"):
            prepare(tiny_settings.model_copy(update=other))
        assert not (tiny_run.folder / "data").exists()
    moved = shutil.copy(tiny_settings.source, tiny_run.folder / "moved.txt")
    assert prepare(tiny_settings.model_copy(update={"source": str(moved)})).facts["splits"] == before["splits"]
    shutil.rmtree(tiny_run.folder / "data")
    assert prepare(tiny_settings).facts == before


def test_a_hub_id_is_not_a_path():
    assert source_path("Salesforce/wikitext") is None


STORY = (
    "The {0} went to the well number {1}, looked for the moon in it, found {2} and went home again before the sun rose."
)


def stories(n):
    """Return documents that have little in common."""
    return [STORY.format(f"fox{i}", i * 37, " ".join(f"thing{i * 11 + k}" for k in range(12))) for i in range(n)]


def test_the_stored_data_can_be_opened_with_datasets_alone(runs, tiny_settings):
    from datasets import load_from_disk

    prepared, folder = prepare(tiny_settings), runs / "tiny/data"
    again = load_from_disk(folder / "blocks")
    assert again["train"]["input_ids"][:].tolist() == prepared.blocks["train"]["input_ids"][:].tolist()
    assert again["train"]._fingerprint != again["validation"]._fingerprint
    assert load_from_disk(folder / "documents")["test"]["text"][:] == prepared.documents["test"]["text"][:]


def write_play(folder):
    """Write a play to a text file and return its path."""
    path = folder / "play.txt"
    path.write_text("".join(f"Fox:\nWho went to well number {n}?\n\nOwl:\nI and {n} hens.\n\n" for n in range(300)))
    return path


@pytest.mark.parametrize("is_play", [False, True])
def test_prepare_gives_the_same_result_as_its_separate_steps(tmp_path, tiny_settings, tokenizer, is_play):
    if is_play:
        tiny_settings = tiny_settings.model_copy(update={"source": str(write_play(tmp_path))})
    prepared = prepare(tiny_settings)
    parts, _ = split_documents(load_documents(tiny_settings), tiny_settings)
    blocks, n_tokens = token_blocks(parts["train"], tokenizer, tiny_settings.block_size)
    assert parts["train"]["text"][:] == prepared.documents["train"]["text"][:]
    assert blocks["input_ids"][:].tolist() == prepared.blocks["train"]["input_ids"][:].tolist()
    assert n_tokens == prepared.facts["splits"]["train"]["tokens"] == sum(prepared.documents["train"]["n_tokens"])


def test_a_play_is_split_by_position_and_contains_no_end_of_text(tmp_path, tiny_settings, tokenizer):
    path = write_play(tmp_path)
    data = prepare(tiny_settings.model_copy(update={"source": str(path)}))
    parts = ["".join(data.documents[name]["text"]) for name in ("train", "validation", "test")]
    assert "".join(parts) == path.read_text(encoding="utf-8").strip()
    assert len(parts[2]) == pytest.approx(len("".join(parts)) / 10, rel=0.3)
    assert data.facts["documents"]["is_continuous"]
    assert not (data.blocks["train"].with_format("numpy")["input_ids"][:] == tokenizer.eos_token_id).any()
    assert "passages of one continuous text" in documents_text(data.facts)


def test_articles_are_the_units_of_splitting_and_deduplication(tmp_path, tiny_settings):
    rows = []
    for number, story in enumerate(stories(30)):
        rows += ["", f" = Article {number} = \n", "", f" {story}\n", "", " = = References = = \n", "", " None . \n"]
    settings = tiny_settings.model_copy(update={"source": str(write_texts(tmp_path, rows + rows[:8]))})
    data = prepare(settings)
    assert (data.facts["documents_read"], data.facts["duplicates_removed"]) == (31, 1), "only the repeated article"
    texts = [text for part in data.documents.values() for text in part["text"]]
    assert all(text.startswith(" = Article") and text.count(" = = References = = ") == 1 for text in texts)
    assert documents_text(data.facts).startswith("'heading' (auto, because 31 of the first 248 rows are headings")


def write_texts(folder, texts, name="a.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def test_near_duplicates_are_kept_in_the_same_split_removed_or_ignored(tmp_path, tiny_settings):
    pairs = [text for story in stories(30) for text in (story, story + " The end.")]
    settings = tiny_settings.model_copy(update={"source": str(write_texts(tmp_path, pairs))})
    prepared = prepare(settings)
    assert prepared.facts["near_duplicates"] == 60
    assert sum(part["documents"] for part in prepared.facts["splits"].values()) == 60
    side = {text: name for name, part in prepared.documents.items() for text in part["text"]}
    assert all(side[story] == side[story + " The end."] for story in stories(30))
    assert "60" in " ".join(prepared.facts["notes"])
    removed = prepare(settings.model_copy(update={"near_duplicates": "remove"})).facts
    assert removed["near_duplicates_removed"] == 30
    assert sum(part["documents"] for part in removed["splits"].values()) == 30
    kept = prepare(settings.model_copy(update={"near_duplicates": "keep"})).facts
    assert kept["near_duplicates"] == 0
    assert sum(part["documents"] for part in kept["splits"].values()) == 60


def test_near_duplicates_of_a_sources_own_test_split_are_removed_from_the_training_text(tmp_path, tiny_settings):
    (folder := tmp_path / "own").mkdir()
    write_texts(folder, stories(40), "train.jsonl")
    write_texts(folder, [stories(40)[3] + " The end.", *stories(50)[40:]], "test.jsonl")
    prepared = prepare(tiny_settings.model_copy(update={"source": str(folder)}))
    assert stories(40)[3] not in prepared.documents["train"]["text"][:]
    assert prepared.facts["splits"]["test"]["documents"] == 11
    assert prepared.facts["splits"]["validation"]["documents"] > 0, "the source has none of its own"


def test_leakage_of_test_text_into_the_training_text_is_measured_and_noted(tmp_path, tiny_settings):
    (folder := tmp_path / "own").mkdir()
    write_texts(folder, [*stories(40), " ".join(stories(50)[40:45])], "train.jsonl")
    write_texts(folder, stories(50)[40:], "test.jsonl")
    write_texts(folder, stories(60)[50:], "validation.jsonl")
    facts = prepare(tiny_settings.model_copy(update={"source": str(folder)})).facts
    assert facts["leakage"]["share_in_train"] == pytest.approx(0.5, abs=0.1), "five of the ten test stories"
    assert any("easier than new text" in note for note in facts["notes"])


def test_reading_stops_at_the_token_budget(tmp_path, tiny_settings):
    settings = tiny_settings.model_copy(update={"source": str(write_texts(tmp_path, stories(200))), "max_tokens": 3000})
    facts = prepare(settings).facts
    total = sum(part["tokens"] for part in facts["splits"].values())
    assert 2800 < total <= 3000
    assert "Reading the text stopped at 3,000 tokens, because of max_tokens." in facts["notes"]


def test_the_splits_of_a_source_share_the_budget():
    settings = DataSettings(max_tokens=1000, validation_share=0.2, test_share=0.1)
    assert [_budget(settings, part) for part in ("", "train", "validation", "test")] == [1000, 700, 200, 100]
    assert _budget(DataSettings(), "train") == 0, "0 means no limit"


def test_streaming_without_a_budget_is_refused(tiny_settings):
    with pytest.raises(SettingsError, match="streaming = True needs an end: set max_tokens"):
        prepare(tiny_settings.model_copy(update={"streaming": True}))


def test_a_note_says_that_chinese_needs_more_tokens(tmp_path, tiny_settings):
    texts = [f"第{i}只狐狸走到井边看见了自己的影子然后回家去了一共走了{i * 7}里路" for i in range(60)]
    settings = tiny_settings.model_copy(update={"source": str(write_texts(tmp_path, texts))})
    (note,) = [note for note in prepare(settings).facts["notes"] if "fits this text badly" in note]
    assert "times as long" in note


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has 0 different documents"),
        (" \n\n \t\n", "has 0 different documents"),
        ("one fox\n\ntwo owls\n\nthree hens", "less than one block of 32"),
    ],
)
def test_too_little_text_is_refused_and_the_runs_old_data_is_kept(tmp_path, tiny_settings, content, words):
    before = prepare(tiny_settings).facts
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(SettingsError, match=words):
        prepare(tiny_settings.model_copy(update={"source": str(path)}))
    assert open_prepared("tiny").facts == before


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, tiny_settings, monkeypatch):
    path = write_texts(tmp_path, stories(50))
    finish = Staging.finish

    def append_and_finish(staging):
        with path.open("a") as file:
            file.write('\n{"text": "one more"}')
        finish(staging)

    monkeypatch.setattr(Staging, "finish", append_and_finish)
    with pytest.raises(SettingsError, match="changed while it was read"):
        prepare(tiny_settings.model_copy(update={"source": str(path)}))
    assert not list((tmp_path / "runs" / "tiny").glob("data*"))


def limit_file_size():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def hang_at_the_end():
    Staging.finish = lambda staging: time.sleep(600)


def prepare_after(change, source, model):
    """Apply a change to this process, prepare a text and print the error."""
    change()
    try:
        prepare(DataSettings(run="tiny", source=str(source), model_name_or_path=str(model), block_size=32))
    except SettingsError as error:
        print(error)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot limit a process's file size")
def test_a_full_disk_is_explained_and_leaves_no_data(tmp_path, tiny_model):
    source, printed = write_texts(tmp_path, stories(2000)), tmp_path / "printed.txt"
    start_forked(prepare_after, limit_file_size, source, tiny_model, output=printed).join()
    assert "temporarily needs about three times its size" in printed.read_text(encoding="utf-8")
    assert not list((tmp_path / "runs" / "tiny").glob("data*"))


def test_a_killed_preparation_leaves_no_data_and_the_next_one_starts_clean(tmp_path, tiny_model):
    source, folder = write_texts(tmp_path, stories(100)), tmp_path / "runs" / "tiny"
    child = start_forked(prepare_after, hang_at_the_end, source, tiny_model, output=tmp_path / "printed.txt")
    deadline = time.monotonic() + 120
    while not (folder / "data.new" / "staged" / "texts").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.kill()
    child.join()
    assert (folder / "data.new").exists()
    assert not (folder / "data").exists()
    with pytest.raises(SettingsError, match="holds no data yet"):
        open_prepared("tiny")
    settings = DataSettings(run="tiny", source=str(source), model_name_or_path=str(tiny_model), block_size=32)
    assert prepare(settings).facts["documents_read"] == 100
    assert sorted(path.name for path in folder.glob("data*")) == ["data"]


def test_a_read_only_source_can_be_prepared_and_is_not_changed(tmp_path, tiny_settings):
    (folder := tmp_path / "only read").mkdir()
    path = write_texts(folder, stories(50), "Füchse und Eulen.jsonl")
    before = path.read_bytes()
    path.chmod(0o444)
    folder.chmod(0o555)
    try:
        assert prepare(tiny_settings.model_copy(update={"source": str(folder)})).facts["documents_read"] == 50
        assert (list(folder.iterdir()), path.read_bytes()) == ([path], before)
    finally:
        folder.chmod(0o755)


def test_progress_is_shown_only_for_long_work(tiny_settings, capsys, monkeypatch):
    prepare(tiny_settings)
    assert "reading" not in capsys.readouterr().err
    shutil.rmtree(Path(os.environ["COURSE_RUNS"]) / "tiny")
    monkeypatch.setattr("helpers.display.QUIET_SECONDS", 0)
    prepare(tiny_settings)
    shown = capsys.readouterr().err
    assert "reading" in shown
    assert "tokens" in shown
