from pathlib import Path

import pytest

from helpers.data.sources import Source
from helpers.data.sources.own_split import name_parts, part_of
from helpers.settings import DataSettings, SettingsError

CARD = "---\nconfigs:\n{}\n---\n# About the data\n"
TWO = CARD.format(
    "- config_name: small\n  data_files:\n  - split: train\n    path: small/a-*\n  - split: test\n    path: small/b-*\n"
    "- config_name: large\n  data_dir: large"
)
# Files of a folder; what each holds is the part it must be in: `train`, `validation`, `test`, or `out`.
LAYOUTS = {
    "plain": "train.txt=train test.txt=test validation.txt=validation",
    "a dataset card": "train.txt=train test.txt=test README.md=out",
    "a licence": "train.txt=train licensed_test.txt=test LICENSE.txt=out",
    "facts": "train.jsonl=train test.jsonl=test dataset_infos.json=out info.json=out",
    "requirements": "train.txt=train dev.txt=validation requirements.txt=out requirements-dev.txt=out",
    "the Hub's shards": "data/train-00000-of-00002.jsonl=train data/train-00001-of-00002.jsonl=train "
    "data/test-00000-of-00001.jsonl=test README.md=out",
    "folders": "train/0.txt=train train/1.txt=train test/0.txt=test dev/0.txt=validation",
    "nested folders": "corpus/training/a.txt=train corpus/evaluation/a.txt=test corpus/notes/a.txt=out",
    "folders first": "train/the_test_of_time.txt=train train/dev_diary.txt=train test/train_ride.txt=test",
    "prefixes": "my_train.txt=train my_test.txt=test my_val.txt=validation",
    "suffixes": "train_data.txt=train test_data.txt=test",
    "one word": "traindata.txt=train testset.txt=test",
    "camel case": "TrainData.txt=train devSet.txt=validation",
    "upper case": "TRAIN.TXT=train TEST.TXT=test",
    "browser copies": "train.txt=train train%20(1).txt=train test%20(1).txt=test",
    "numbers": "train2.txt=train test2.txt=test",
    "dots": "v1.train.jsonl=train v1.test.jsonl=test",
    "keywords of the Hub": "training.txt=train testing.txt=test valid.txt=validation",
    "held out": "train.txt=train heldout.txt=test",
    "evaluation": "train.txt=train eval.txt=test",
    "more text": "train.txt=train test.txt=test novel.txt=out raw/all.txt=out",
    "only a test": "novel.txt=train poems.txt=train test.txt=test",
    "only a validation": "novel.txt=train dev.txt=validation",
    "an ambiguous name": "train.txt=train train_test.txt=test train_val.txt=validation",
    "compressed": "train.txt.gz=train test.txt.gz=test",
}


def make(folder: Path, layout: str) -> set[str]:
    """Make the files of a layout, each with the part it belongs to as its text; return the parts."""
    import gzip

    expected = {}
    for entry in layout.replace("%20", "\0").split():
        name, part = entry.replace("\0", " ").split("=")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f'{{"text": "{part}"}}' if ".json" in name else part
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        expected[name] = part
    return set(expected.values()) - {"out"}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_file_is_in_the_split_of_its_name_and_no_test_is_trained_on(tmp_path, layout):
    expected = make(tmp_path, layout)
    parts = {part: set(texts) for part, texts in Source(DataSettings(source=str(tmp_path))).parts()}
    assert parts == {part: {part} for part in expected}


def test_files_that_are_left_out_are_listed_and_counted(tmp_path):
    make(tmp_path, "train.txt=train test.txt=test README.md=out novel.txt=out a.pdf=out b.pdf=out c.docx=out")
    source = Source(DataSettings(source=str(tmp_path)))
    list(source.parts())
    split, about, rest, kinds = source.notes
    assert "(test: test.txt; train: train.txt)" in split
    assert about.endswith("describe the data): README.md.")
    assert rest.endswith("no part of the split): novel.txt.")
    assert kinds == "Left out (other kinds of files): 2 .pdf, 1 .docx."


def test_long_lists_of_names_are_shortened(tmp_path):
    make(tmp_path, " ".join([*(f"{n}.txt=a" for n in range(100)), *(f"log.{n}=out" for n in range(100))]))
    source = Source(DataSettings(source=str(tmp_path)))
    list(source.parts())
    assert source.notes[0].startswith("Left out (other kinds of files): 1 .")
    assert source.notes[0].endswith(" and 96 more.")
    with pytest.raises(SettingsError, match="no split 'test'") as error:
        list(Source(DataSettings(source=str(tmp_path), source_split="test")).parts())
    assert str(error.value).count(",") == 19


def test_the_name_of_a_configuration_can_be_a_number(tmp_path):
    make(tmp_path, "train.txt=train test.txt=test")
    card = CARD.format("- config_name: 2024\n  data_files: train.txt\n- config_name: 2025\n  data_files: test.txt")
    (tmp_path / "README.md").write_text(card)
    parts = Source(DataSettings(source=str(tmp_path), source_config="2025")).parts()
    assert {part: list(texts) for part, texts in parts} == {"": ["test"]}


@pytest.mark.parametrize(
    "layout", ["a.txt=a b.txt=b", "train.txt=a extra.txt=b", "contest.txt=a devil.txt=b", "latest/a.txt=a trains.txt=b"]
)
def test_a_folder_without_a_held_out_split_is_not_split_yet(tmp_path, layout):
    make(tmp_path, layout)
    source = Source(DataSettings(source=str(tmp_path)))
    assert {part: set(texts) for part, texts in source.parts()} == {"": {"a", "b"}}
    assert source.notes == []


def test_a_folder_with_only_a_readme_is_read_as_text(tmp_path):
    make(tmp_path, "README.md=words")
    assert [list(texts) for _, texts in Source(DataSettings(source=str(tmp_path))).parts()] == [["words"]]


def test_one_split_of_a_folder_can_be_chosen_by_our_name_or_its_own(tmp_path):
    make(tmp_path, "my_train.txt=train dev.txt=validation")
    for wanted, text in (("train", "train"), ("dev", "validation"), ("validation", "validation")):
        settings = DataSettings(source=str(tmp_path), source_split=wanted)
        assert {part: list(texts) for part, texts in Source(settings).parts()} == {"": [text]}
    with pytest.raises(SettingsError, match=r"no split 'test': set source_split to one of \["):
        list(Source(DataSettings(source=str(tmp_path), source_split="test")).parts())


def test_a_source_with_only_held_out_splits_is_refused(tmp_path):
    make(tmp_path, "test.txt=test dev.txt=validation")
    with pytest.raises(SettingsError, match="no split for training"):
        list(Source(DataSettings(source=str(tmp_path))).parts())


def test_a_cloned_repository_is_read_according_to_the_configuration_in_its_card(tmp_path):
    make(tmp_path, "small/a-0.txt=train small/b-0.txt=test large/train.txt=big large/test.txt=big_test train/c.txt=no")
    (tmp_path / "README.md").write_text(TWO)
    settings = DataSettings(source=str(tmp_path), source_config="small")
    assert {part: list(texts) for part, texts in Source(settings).parts()} == {"train": ["train"], "test": ["test"]}
    settings = DataSettings(source=str(tmp_path), source_config="large")
    assert {part: list(texts) for part, texts in Source(settings).parts()} == {"train": ["big"], "test": ["big_test"]}
    with pytest.raises(SettingsError, match=r"has 2 configurations: set source_config to one of \['small', 'large'\]"):
        list(Source(DataSettings(source=str(tmp_path))).parts())
    (tmp_path / "README.md").write_text(TWO.partition("- config_name: large")[0] + "---\n")
    parts = Source(DataSettings(source=str(tmp_path))).parts()
    assert {part: list(texts) for part, texts in parts} == {"train": ["train"], "test": ["test"]}, "the only one"


@pytest.mark.parametrize("card", ["# Words", "---\nconfigs: 3\n---\n", "---\n: [\n---\n", CARD.format("- x: 1")])
def test_a_card_without_configurations_changes_nothing(tmp_path, card):
    make(tmp_path, "train.txt=train test.txt=test")
    (tmp_path / "README.md").write_text(card)
    assert {part for part, _ in Source(DataSettings(source=str(tmp_path))).parts()} == {"train", "test"}


def test_a_flattened_copy_of_a_repository_is_split_by_its_file_names(tmp_path):
    make(tmp_path, "train-0.txt=train test-0.txt=test")
    (tmp_path / "README.md").write_text(
        CARD.format("- config_name: all\n  data_files: [{split: train, path: x/a-*}, {split: test, path: x/b-*}]")
    )
    assert {part: list(texts) for part, texts in Source(DataSettings(source=str(tmp_path))).parts()} == {
        "train": ["train"], "test": ["test"]
    }  # fmt: skip


def test_a_configuration_whose_files_are_missing_is_named(tmp_path):
    make(tmp_path, "large/train.txt=big large/test.txt=big_test")
    (tmp_path / "README.md").write_text(TWO)
    with pytest.raises(SettingsError, match=r"no file of the configuration 'small', .*small/a-\*"):
        list(Source(DataSettings(source=str(tmp_path), source_config="small")).parts())


@pytest.mark.parametrize(
    "entry", ["data_files: {path: '*.txt'}", "data_files: [{path: '*.txt'}]", "data_files: ['*.txt', t*]", ""]
)
def test_a_configuration_without_a_split_has_its_files_in_any_folder(tmp_path, entry):
    folder = tmp_path / "data [1]"
    make(folder, "train.txt=train test.txt=test")
    (folder / "README.md").write_text(CARD.format(f"- config_name: en\n  {entry}\n- config_name: de\n  data_dir: de"))
    settings = DataSettings(source=str(folder), source_config="en")
    assert {part: list(texts) for part, texts in Source(settings).parts()} == {"train": ["train"], "test": ["test"]}


def test_exact_split_names_take_precedence_over_synonyms():
    splits = {"dev": 1, "validation": 2, "Train": 3, "test": 4, "unsupervised": 5}
    assert name_parts(splits, DataSettings()) == {"validation": 2, "test": 4, "train": 3}
    assert name_parts({"test": 1}, DataSettings()) == {"": 1}, "still to be split"


@pytest.mark.parametrize(("name", "part"), [("Ü-Test.txt", "test"), ("Létest.txt", ""), ("a/b/test/c/d.md", "test")])
def test_words_in_file_names_are_found_in_any_language(name, part):
    assert part_of(name) == part
