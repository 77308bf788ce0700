import random

import numpy as np
import pytest

from helpers.data.duplicates import NEAR, Marks, normalized, sketch

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
def marks(tmp_path):
    made = Marks(tmp_path / "sketches")
    yield made
    made.close()


def groups(marks, texts):
    marks.add(texts)
    return marks.groups(np.ones(len(texts), bool)).tolist()


def test_two_documents_that_differ_in_case_and_spaces_are_the_same(marks):
    marks.add(["One  Fox", "one fox\n", "two"])
    assert marks.firsts(np.zeros(3)).tolist() == [True, False, True]
    assert normalized("One \t Fox\u3000") == normalized(" one fox")


def test_of_equals_the_one_that_comes_first_by_order_stays(marks):
    marks.add(["same", "same", "other"])
    assert marks.firsts(np.array([0, -2, 0])).tolist() == [False, True, True], "the test's, and not the training's"


def test_a_word_changed_makes_a_near_duplicate_and_many_make_another_document(marks):
    text = document(1)
    assert groups(marks, [text, changed(text, 2), document(2), changed(text, 100)]) == [0, 0, 2, 3]


def test_near_duplicates_of_near_duplicates_are_one_group(marks):
    texts = [document(1)]
    for turn in range(4):
        texts.append(changed(texts[-1], 3, seed=turn))
    assert groups(marks, texts) == [0] * 5


def test_chinese_without_spaces_is_compared_by_letters(marks):
    draw = random.Random(0)
    text = "".join(chr(draw.randrange(0x4E00, 0x9000)) for _ in range(300))
    other = "".join(chr(draw.randrange(0x4E00, 0x9000)) for _ in range(300))
    assert groups(marks, [text, text[:150] + "狐" + text[150:], other]) == [0, 0, 2]


def test_sketches_estimate_the_share_of_common_shingles():
    text = document(3, 400)
    for n in (2, 10, 40):
        other = changed(text, n)
        a, b = (set(zip(*(words[i:] for i in range(5)), strict=False)) for words in (text.split(), other.split()))
        jaccard = len(a & b) / len(a | b)
        assert (sketch(text) == sketch(other)).mean() == pytest.approx(jaccard, abs=0.2)


def test_few_near_duplicates_are_missed(tmp_path):
    marks = Marks(tmp_path / "many")
    texts = [text for seed in range(100) for text in (document(seed), changed(document(seed), 3))]
    found = groups(marks, texts)
    marks.close()
    assert NEAR < 0.8
    assert sum(found[2 * i] == found[2 * i + 1] for i in range(100)) >= 95
    assert len(set(found)) >= 100, "and none are put together that are not alike"


@pytest.mark.parametrize("text", ["", "one", "one two three", "x" * 10**6])
def test_short_and_long_documents_are_sketched_too(text):
    assert sketch(text).shape == (64,)
