import re
from html import unescape

import numpy as np
import pytest

from helpers.evaluation import copying
from helpers.evaluation.copying import Match, find_copies, longest_in_words, novelty, report
from helpers.settings import SettingsError

TRAINING = ["The fox went to the old well at noon.", "An owl, wise & <b>old</b>, slept all day in the barn."]


def test_a_run_is_found_in_the_document_that_has_it_and_never_across_two():
    first, second, third = find_copies([[1, 2, 3, 9], [3, 4, 5], []], [[1, 2, 3], [4, 5, 6]])
    assert first.lengths.tolist() == [3, 2, 1, 0]
    assert first.documents.tolist()[:3] == [0, 0, 0]
    assert second.lengths.tolist() == [1, 2, 1], "3 ends one document, 4 begins the next"
    assert second.documents.tolist() == [0, 1, 1]
    assert third.longest == 0


@pytest.mark.parametrize("part", [1, 5, 17])
def test_a_large_corpus_is_searched_part_by_part_with_the_same_result(monkeypatch, part):
    random = np.random.default_rng(0)
    corpus = [random.integers(3, size=9).tolist() for _ in range(20)]
    queries = [random.integers(3, size=12).tolist() for _ in range(4)]
    whole = find_copies(queries, corpus)
    monkeypatch.setattr(copying, "_PART_TOKENS", part)
    for match, again, query in zip(whole, find_copies(queries, iter(corpus)), queries, strict=True):
        assert again.lengths.tolist() == match.lengths.tolist()
        for start, (length, document) in enumerate(zip(again.lengths, again.documents, strict=True)):
            wanted = query[start : start + length]
            assert any(corpus[document][i : i + length] == wanted for i in range(10 - length))


def test_spans_are_the_runs_that_lie_in_no_longer_one():
    match = Match(np.array([1, 4, 3, 2, 3, 2, 1, 2, 1]), np.array([0, 5, 5, 5, 7, 7, 7, 0, 0]))
    assert match.spans(3) == [(1, 5, 5), (4, 7, 7)]
    assert match.spans(2) == [(1, 5, 5), (4, 7, 7), (7, 9, 0)]
    assert match.spans(5) == []


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_novelty_is_that_of_the_sets_of_n_grams(n):
    random = np.random.default_rng(1)
    corpus = [random.integers(4, size=30).tolist() for _ in range(3)]
    queries = [random.integers(4, size=20).tolist() for _ in range(2)]
    known = {tuple(row[i : i + n]) for row in corpus for i in range(len(row) - n + 1)}
    asked = [tuple(row[i : i + n]) for row in queries for i in range(len(row) - n + 1)]
    expected = sum(gram not in known for gram in asked) / len(asked)
    assert novelty(find_copies(queries, corpus), n) == pytest.approx(expected)


def test_case_punctuation_and_line_breaks_hide_no_copy_in_words():
    asked = ["'THE FOX went\nto the old -- well'!", "a day in the barn", "nothing of it"]
    assert longest_in_words(asked, TRAINING) == [7, 4, 0]


@pytest.fixture(scope="module")
def found(tiny):
    tokenizer = tiny[1]
    said = ["He saw the fox went to the old well at night.", "wise & <b>old</b>, slept all day"]
    control = ["A hen was at the mill at noon.", "No."]
    return report(tokenizer, *([tokenizer.encode(t) for t in texts] for texts in (said, control)), TRAINING)


def test_the_samples_and_the_control_stand_side_by_side(found, tiny):
    samples, control = found.rows
    assert samples["text"] == "samples"
    assert samples["longest_words"] == 8
    assert samples["longest_tokens"] == len(tiny[1].encode("wise & <b>old</b>, slept all day")) - 1, "'wise' differs"
    assert control["longest_words"] == 2
    assert samples["novel_4"] < control["novel_4"]
    assert found.to_dict()["rows"] == found.rows
    assert found.to_dict()["longest_copy"] == {"text": " & <b>old</b>, slept all day", "training_document": 1}
    curves = found.novelty_curves(6)
    assert all(len(curve) == 6 and curve == sorted(curve) for curve in curves.values())


def test_copied_runs_are_marked_and_all_text_is_escaped(found):
    shown = found.show(1, min_tokens=4)
    assert shown.count("<mark") == 1
    assert "&lt;b&gt;old&lt;/b&gt;" in shown
    assert "<b>" not in shown
    assert "as in: An owl, wise &amp; &lt;b&gt;old" in shown
    assert found.show(1, min_tokens=100).count("<mark") == 0
    assert "The sample with the longest run" in found._repr_html_()


def test_the_marks_change_no_letter(found):
    for number, said in enumerate(found.sample_pieces):
        assert unescape(re.sub("<[^>]*>", "", found.show(number, min_tokens=2))) == "".join(said)


def test_a_character_of_several_tokens_is_kept_whole(tiny):
    text = "caf\u00e9 \u4e16\u754c \U0001f98a end"
    ids = tiny[1].encode(text)
    assert len(ids) > len(text) / 2
    assert "".join(copying._pieces(tiny[1], ids)) == text


@pytest.mark.parametrize("missing", ["sample", "held-out text", "training document"])
def test_what_is_missing_is_said(tiny, missing):
    given = {"sample": [[1]], "held-out text": [[1]], "training document": ["x"]} | {missing: []}
    with pytest.raises(SettingsError, match=f"There is no {missing}"):
        report(tiny[1], *given.values())
