import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from helpers import data
from helpers.data import load_documents, prepare, source_path, split_documents, token_blocks
from helpers.model import load_tokenizer
from helpers.settings import DataSettings, SettingsError

GPT2 = Path(__file__).parents[2] / "shared" / "data" / "gpt2-tokenizer"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("pocket")


def documents(*texts):
    return Dataset.from_dict({"text": list(texts)})


def test_blocks_joined_again_are_the_documents_with_their_ends(tokenizer):
    texts = ["A fox ran home.", "The owl slept.", "No one came to the well that day."]
    blocks, n_tokens = token_blocks(documents(*texts), tokenizer, 8)
    stream = blocks["input_ids"][:].flatten().tolist()
    expected = [token for text in texts for token in [*tokenizer.encode(text), tokenizer.eos_token_id]]
    assert stream == expected[: len(stream)]
    assert n_tokens == len(expected)


def test_blocks_drop_only_the_remainder(tokenizer):
    blocks, n_tokens = token_blocks(documents(*["A fox ran home."] * 2500), tokenizer, 16)
    assert 0 <= n_tokens - 16 * len(blocks) < 16, "nothing is lost where a batch of documents ends"


def test_less_than_a_block_is_an_error_that_says_so(tokenizer):
    with pytest.raises(SettingsError, match=r"train text has \d+ tokens, less than one block of 64"):
        token_blocks(documents("A fox."), tokenizer, 64)


def test_gpt2s_own_tokens_are_a_persons_count():
    if not GPT2.exists():
        pytest.skip("GPT-2's tokenizer files are not beside this checkout")
    from transformers import GPT2Tokenizer

    gpt2 = GPT2Tokenizer(vocab=str(GPT2 / "vocab.json"), merges=str(GPT2 / "merges.txt"))
    blocks, n_tokens = token_blocks(documents("Hello world", "Hello"), gpt2, 2)
    assert n_tokens == 5
    assert blocks["input_ids"][:].tolist() == [[15496, 995], [50256, 15496]]


def test_a_split_keeps_every_document_once():
    whole = DatasetDict(train=documents(*(f"story {i}" for i in range(50))))
    parts, n_duplicates = split_documents(whole, DataSettings(validation_share=0.2, test_share=0.1))
    assert {name: len(part) for name, part in parts.items()} == {"train": 35, "validation": 10, "test": 5}
    assert sorted(text for part in parts.values() for text in part["text"]) == sorted(whole["train"]["text"])
    assert n_duplicates == 0


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    whole = DatasetDict(train=documents(*(f"story {i}" for i in range(50))))
    first, again, other = (split_documents(whole, DataSettings(seed=seed))[0]["test"]["text"][:] for seed in (1, 1, 2))
    assert first == again != other


def test_a_repeated_document_is_kept_once_and_counted():
    whole = DatasetDict(train=documents(*["One  Story", "one story\n", "two", "three", "", "four"]))
    parts, n_duplicates = split_documents(whole, DataSettings())
    assert n_duplicates == 1
    assert sum(len(part) for part in parts.values()) == 4


def test_a_sources_own_split_is_kept_and_training_gives_way_to_the_test():
    whole = DatasetDict(train=documents("a", "b", "same"), validation=documents("c"), test=documents("same"))
    parts, n_duplicates = split_documents(whole, DataSettings())
    assert parts["test"]["text"][:] == ["same"]
    assert parts["train"]["text"][:] == ["a", "b"]
    assert n_duplicates == 1


def test_two_documents_are_too_few():
    with pytest.raises(SettingsError, match="has 2 different documents"):
        split_documents(DatasetDict(train=documents("a", "b")), DataSettings())


def test_prepare_writes_what_it_returns(runs, tiny_settings):
    prepared = prepare(tiny_settings)
    stored = json.loads((runs / "tiny/data/data.json").read_text())
    assert stored == prepared.facts
    train = stored["splits"]["train"]
    assert train["documents"] == 32
    assert train["bytes"] == sum(len(text.encode()) for text in prepared.documents["train"]["text"])
    assert train["tokens"] == len(prepared.blocks["train"]) * 32 + train["tokens_dropped"]


def test_prepare_is_done_once_for_the_same_settings(runs, tiny_settings):
    prepare(tiny_settings)
    before = (runs / "tiny/data/data.json").stat().st_mtime_ns
    prepare(tiny_settings)
    assert (runs / "tiny/data/data.json").stat().st_mtime_ns == before


def test_prepare_is_done_again_when_the_file_changed(tmp_path, text_file, tiny_settings):
    mine = tmp_path / "mine.txt"
    mine.write_text(text_file.read_text())
    settings = tiny_settings.model_copy(update={"source": str(mine)})
    first = prepare(settings).facts["splits"]["train"]["sha256"]
    mine.write_text(text_file.read_text().replace("fox", "wolf"))
    assert prepare(settings).facts["splits"]["train"]["sha256"] != first


def test_a_trained_runs_data_are_not_replaced(tiny_run, tiny_settings):
    with pytest.raises(SettingsError, match="was trained on other data"):
        prepare(tiny_settings.model_copy(update={"block_size": 16}))


def test_the_fables_are_documents_that_open_with_their_title():
    texts = load_documents(DataSettings(source="fables"))["train"]["text"][:]
    assert len(texts) >= 150
    assert all("\n\nMoral: " in text and not text.startswith("#") for text in texts)


def test_the_python_reference_is_a_source_on_every_machine():
    assert len(load_documents(DataSettings(source="python-reference"))["train"]) > 50


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\n\ntwo\n\n\nthree"),
        ("a.jsonl", '{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n'),
        ("a.json", '[{"text": "one"}, {"text": "two"}, {"text": "three"}]'),
        ("a.csv", "text,n\none,1\ntwo,2\nthree,3\n"),
        ("a.tsv", "text\tn\none\t1\ntwo\t2\nthree\t3\n"),
        ("bom.txt", "\ufeffone\n\ntwo\n\nthree"),
    ],
)
def test_a_file_is_read_as_its_suffix_says(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert load_documents(DataSettings(source=str(path)))["train"]["text"][:] == ["one", "two", "three"]


def test_a_parquet_file_is_read(tmp_path):
    documents("one", "two").to_parquet(tmp_path / "a.parquet")
    assert load_documents(DataSettings(source=str(tmp_path / "a.parquet")))["train"]["text"][:] == ["one", "two"]


def test_a_folder_gives_a_document_a_file(tmp_path):
    for name, text in (("b.md", "two"), ("a.txt", "one"), ("c.png", "no")):
        (tmp_path / name).write_text(text)
    assert load_documents(DataSettings(source=str(tmp_path)))["train"]["text"][:] == ["one", "two"]


def test_another_column_can_be_named_and_a_wrong_one_lists_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("body,n\none,1\n")
    assert load_documents(DataSettings(source=str(path), text_column="body"))["train"]["text"][:] == ["one"]
    with pytest.raises(SettingsError, match=r"no column 'text'.*\['body', 'n'\]"):
        load_documents(DataSettings(source=str(path)))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.txt", "is not there"),
        ("../nowhere", "is not there"),
        ("wikitext", "owner in front"),
        ("bookcorpus", "BookCorpus itself was a script"),
    ],
)
def test_a_source_that_is_not_there_is_told_from_a_bare_name(source, words):
    with pytest.raises(SettingsError, match=words):
        source_path(source)


def test_a_hub_id_is_no_path():
    assert source_path("Salesforce/wikitext") is None


def test_a_hub_data_set_that_cannot_be_had_is_one_sentence():
    with pytest.raises(SettingsError, match="source='fables'"):
        load_documents(DataSettings(source="nobody/nothing-at-all"))


def test_a_text_that_is_not_utf8_is_refused_by_name(tmp_path):
    path = tmp_path / "windows.txt"
    path.write_bytes("caf\u00e9".encode("cp1252"))
    with pytest.raises(SettingsError, match=r"windows\.txt is not UTF-8 text \(byte 3 is 0xe9\)"):
        load_documents(DataSettings(source=str(path)))


def test_a_broken_table_is_refused_by_name(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "one"}\n{"text": ')
    with pytest.raises(SettingsError, match=r"broken\.jsonl cannot be read as jsonl"):
        load_documents(DataSettings(source=str(path)))


def test_a_source_is_read_and_never_changed(text_file, tiny_settings):
    before = text_file.read_bytes()
    prepare(tiny_settings)
    assert text_file.read_bytes() == before
    assert data.source_hash(tiny_settings) == data.source_hash(tiny_settings)
