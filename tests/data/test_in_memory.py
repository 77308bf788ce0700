from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from helpers.data.in_memory import load_documents, split_documents, token_blocks
from helpers.settings import DataSettings, SettingsError

GPT2 = Path(__file__).parents[3] / "shared" / "data" / "gpt2-tokenizer"


def documents(*texts):
    return Dataset.from_dict({"text": list(texts)})


def test_joined_blocks_are_the_documents_each_followed_by_end_of_text(tokenizer):
    texts = ["A fox ran home.", "The owl slept.", "No one came to the well that day."]
    blocks, n_tokens = token_blocks(documents(*texts), tokenizer, 8)
    stream = blocks["input_ids"][:].flatten().tolist()
    expected = [token for text in texts for token in [*tokenizer.encode(text), tokenizer.eos_token_id]]
    assert stream == expected[: len(stream)]
    assert n_tokens == len(expected)


def test_only_the_last_incomplete_block_is_dropped(tokenizer):
    blocks, n_tokens = token_blocks(documents(*["A fox ran home."] * 2500), tokenizer, 16)
    assert 0 <= n_tokens - 16 * len(blocks) < 16, "no token is lost between batches of documents"


def test_less_than_one_block_is_an_error(tokenizer):
    with pytest.raises(SettingsError, match=r"train text has \d+ tokens, less than one block of 64"):
        token_blocks(documents("A fox."), tokenizer, 64)


def test_gpt2_tokens_are_cut_into_blocks_as_counted_by_hand():
    if not GPT2.exists():
        pytest.skip("needs GPT-2's tokenizer files next to this checkout")
    from transformers import GPT2Tokenizer

    gpt2 = GPT2Tokenizer(vocab=str(GPT2 / "vocab.json"), merges=str(GPT2 / "merges.txt"))
    blocks, n_tokens = token_blocks(documents("Hello world", "Hello"), gpt2, 2)
    assert n_tokens == 5
    assert blocks["input_ids"][:].tolist() == [[15496, 995], [50256, 15496]]


def test_a_split_keeps_every_document_once():
    documents_read = DatasetDict(train=documents(*(f"story {i}" for i in range(50))))
    parts, n_duplicates = split_documents(documents_read, DataSettings(validation_share=0.2, test_share=0.1))
    assert {name: len(part) for name, part in parts.items()} == {"train": 35, "validation": 10, "test": 5}
    assert sorted(text for part in parts.values() for text in part["text"]) == sorted(documents_read["train"]["text"])
    assert n_duplicates == 0


def test_a_repeated_document_is_kept_once_and_counted():
    documents_read = DatasetDict(train=documents(*["One  Story", "one story\n", "two", "three", "", "four"]))
    parts, n_duplicates = split_documents(documents_read, DataSettings())
    assert n_duplicates == 1
    assert sum(len(part) for part in parts.values()) == 4


def test_a_sources_own_split_is_kept_and_a_repeated_document_stays_in_its_test_split():
    documents_read = DatasetDict(train=documents("a", "b", "same"), validation=documents("c"), test=documents("same"))
    parts, n_duplicates = split_documents(documents_read, DataSettings())
    assert parts["test"]["text"][:] == ["same"]
    assert parts["train"]["text"][:] == ["a", "b"]
    assert n_duplicates == 1


def test_a_row_of_only_whitespace_is_not_a_document(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one fox"}\n{"text": " \\n"}\n{"text": ""}\n')
    assert load_documents(DataSettings(source=str(path)))["train"]["text"][:] == ["one fox"]


def test_the_python_reference_is_available_on_every_machine():
    assert len(load_documents(DataSettings(source="python-reference"))["train"]) > 50


def test_a_hub_data_set_that_cannot_be_loaded_suggests_the_fables():
    with pytest.raises(SettingsError, match="source='fables'"):
        load_documents(DataSettings(source="nobody/nothing-at-all"))
