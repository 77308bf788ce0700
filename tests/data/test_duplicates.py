import random
from contextlib import closing

import numpy as np
import pytest

from helpers.data.duplicates import NEAR, Fingerprints, HeldOut, normalize, sketch

WORDS = [f"word{i}" for i in range(3000)]


def document(seed, n=200):
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def changed(text, n, seed=0):
    """Return a text with `n` of its words replaced."""
    words, draw = text.split(), random.Random(seed)
    for place in draw.sample(range(len(words)), n):
        words[place] = "other"
    return " ".join(words)


@pytest.fixture
def fingerprints(tmp_path):
    with closing(Fingerprints(tmp_path / "sketches")) as fingerprints:
        yield fingerprints


def groups(fingerprints, texts):
    fingerprints.add(texts)
    return fingerprints.group_near_duplicates(np.ones(len(texts), bool)).tolist()


def test_documents_that_differ_only_in_case_and_spaces_are_the_same(fingerprints):
    fingerprints.add(["One  Fox", "one fox\n", "two"])
    assert fingerprints.find_first_copies(np.zeros(3)).tolist() == [True, False, True]
    assert normalize("One \t Fox\u3000") == normalize(" one fox")
    assert normalize("One \t Fox\u3000" * 2**17) == " ".join(["one fox"] * 2**17), "a very long text too"


def test_the_first_of_equal_documents_in_the_given_order_is_kept(fingerprints):
    fingerprints.add(["same", "same", "other"])
    assert fingerprints.find_first_copies(np.array([0, -2, 0])).tolist() == [False, True, True], (
        "the test split keeps its copy, training loses its own"
    )


def test_the_first_of_many_equal_documents_is_kept(fingerprints):
    for texts in (["other"], [], ["same"] * 100):
        fingerprints.add(texts)
    assert np.flatnonzero(fingerprints.find_first_copies(np.zeros(101))).tolist() == [0, 1]


def test_without_a_sketch_file_near_duplicates_are_not_detected():
    assert groups(Fingerprints(None), [document(1), changed(document(1), 2)]) == [0, 1]


def test_copies_of_held_out_documents_are_found_and_near_duplicates_on_request():
    near, equal = (HeldOut([document(1), document(2)], finds_near=finds_near) for finds_near in (True, False))
    for held_out in (near, equal):
        assert document(2).upper() in held_out
        assert changed(document(1), 100) not in held_out
        assert document(3) not in held_out
    assert changed(document(2), 2) in near
    assert changed(document(2), 2) not in equal


def test_two_changed_words_make_a_near_duplicate_and_a_hundred_a_different_document(fingerprints):
    text = document(1)
    assert groups(fingerprints, [text, changed(text, 2), document(2), changed(text, 100)]) == [0, 0, 2, 3]


def test_near_duplicates_of_near_duplicates_are_one_group(fingerprints):
    texts = [document(1)]
    for turn in range(4):
        texts.append(changed(texts[-1], 3, seed=turn))
    assert groups(fingerprints, texts) == [0] * 5


def test_chinese_without_spaces_is_compared_by_characters(fingerprints):
    draw = random.Random(0)
    text = "".join(chr(draw.randrange(0x4E00, 0x9000)) for _ in range(300))
    other = "".join(chr(draw.randrange(0x4E00, 0x9000)) for _ in range(300))
    assert groups(fingerprints, [text, text[:150] + "狐" + text[150:], other]) == [0, 0, 2]


def test_sketches_estimate_the_jaccard_similarity_of_shingles():
    text = document(3, 400)
    for n in (2, 10, 40):
        other = changed(text, n)
        a, b = (set(zip(*(words[i:] for i in range(5)), strict=False)) for words in (text.split(), other.split()))
        jaccard = len(a & b) / len(a | b)
        assert (sketch(text) == sketch(other)).mean() == pytest.approx(jaccard, abs=0.2)


def test_few_near_duplicates_are_missed(fingerprints):
    texts = [changed(document(seed), n) for seed in range(100) for n in (0, 3, 20)]
    group = groups(fingerprints, texts)
    assert NEAR < 0.8
    assert sum(group[i] == group[i + 1] for i in range(0, 300, 3)) >= 95
    assert len(set(group)) >= 200, "documents that share less than half of their shingles are never grouped"


def test_a_sketch_depends_on_each_word_and_on_their_order():
    words = "a b c d e f".split()
    assert (sketch(" ".join(reversed(words))) != sketch(" ".join(words))).any()
    for place in range(6):
        other = [*words[:place], "other", *words[place + 1 :]]
        assert (sketch(" ".join(other)) != sketch(" ".join(words))).any()


@pytest.mark.parametrize("text", ["", "one", "one two three", "x" * 10**6])
def test_very_short_and_very_long_documents_have_sketches(text):
    assert sketch(text).shape == (64,)
