import re
from collections import Counter

import pytest

from helpers.data.in_memory import load_documents
from helpers.data.sources import FABLES
from helpers.settings import DataSettings


@pytest.fixture(scope="module")
def fables():
    return load_documents(DataSettings(source="fables"))["train"]["text"][:]


def test_there_are_enough_fables(fables):
    assert len(fables) >= 450
    assert sum(len(fable.encode()) for fable in fables) >= 400_000


def test_each_fable_has_a_title_a_story_and_one_moral(fables):
    for fable in fables:
        title, *story, moral = fable.split("\n\n")
        assert "\n" not in title and not title.startswith("#")
        assert len(" ".join(story).split()) > 100, title
        assert moral.startswith("Moral: ")
        assert fable.count("Moral:") == 1


def test_titles_and_morals_are_unique(fables):
    for part in (0, -1):
        counts = Counter(fable.split("\n\n")[part] for fable in fables)
        assert max(counts.values()) == 1


def test_at_least_90_percent_of_word_4_grams_are_distinct(fables):
    grams = Counter()
    for fable in fables:
        words = re.findall(r"[a-z']+", fable.lower())
        grams.update(zip(words, words[1:], words[2:], words[3:], strict=False))
    assert len(grams) / sum(grams.values()) >= 0.9


def test_no_sentence_appears_in_two_fables(fables):
    counts = Counter()
    for fable in fables:
        body = fable.split("\n\n", 1)[1].replace("\n\n", " ")
        counts.update({s.strip('" ') for s in re.split(r'(?<=[.!?])"? +(?=["A-Z])', body)})
    assert [sentence for sentence, count in counts.items() if count > 1] == []


def test_fables_are_plain_ascii(fables):
    assert all(fable.isascii() for fable in fables)


def test_fables_are_in_the_public_domain():
    assert "CC0 1.0" in (FABLES / "LICENSE").read_text(encoding="utf-8")
