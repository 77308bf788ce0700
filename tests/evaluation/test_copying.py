import re
from html import unescape

import numpy as np
import pytest

from helpers.evaluation import copying
from helpers.evaluation.copying import (
    NO_ID,
    Match,
    find_copies,
    find_longest_matches,
    measure_novelty,
    search_training_text,
)

TRAINING = ["The fox went to the old well at noon.", "An owl, wise & <b>old</b>, slept all day in the barn."]


def longest_by_search(ids, query, start):
    """Return the longest run by comparing every position: a quadratic, independent reference."""
    longest = 0
    for place in range(len(ids)):
        n = 0
        while start + n < len(query) and place + n < len(ids) and query[start + n] == ids[place + n] != NO_ID:
            n += 1
        longest = max(longest, n)
    return longest


@pytest.mark.parametrize("n_kinds", [1, 2, 5, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_match_lengths_equal_a_brute_force_search(n_kinds, seed):
    random = np.random.default_rng(seed)
    ids, query = random.integers(n_kinds, size=120), random.integers(n_kinds, size=60)
    ids[[20, 21, 77]] = query[[5, 6, 30]] = NO_ID
    lengths, positions = find_longest_matches(query, ids)
    assert lengths.tolist() == [longest_by_search(ids, query, start) for start in range(len(query))]
    for start, (length, place) in enumerate(zip(lengths, positions, strict=True)):
        assert ids[place : place + length].tolist() == query[start : start + length].tolist()


def test_a_match_can_span_the_whole_text_even_a_repetitive_one():
    ids = np.arange(1500)
    assert find_longest_matches(ids, ids)[0].tolist() == list(range(1500, 0, -1))
    same = np.zeros(3000, int)
    assert find_longest_matches(same[:5], same)[0].tolist() == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(("ids", "query"), [([], [1, 2]), ([1, 2], []), ([NO_ID], [NO_ID]), ([3], [1])])
def test_no_shared_tokens_give_no_match(ids, query):
    lengths, _ = find_longest_matches(np.array(query, int), np.array(ids, int))
    assert lengths.tolist() == [0] * len(query)


def test_a_match_names_its_document_and_never_spans_two():
    first, second, third = find_copies([[1, 2, 3, 9], [3, 4, 5], []], [[1, 2, 3], [4, 5, 6]])
    assert first.lengths.tolist() == [3, 2, 1, 0]
    assert first.documents.tolist()[:3] == [0, 0, 0]
    assert second.lengths.tolist() == [1, 2, 1], "3 ends one document, 4 begins the next"
    assert second.documents.tolist() == [0, 1, 1]
    assert third.longest == 0


@pytest.mark.parametrize("part", [1, 5, 17])
def test_searching_the_corpus_in_parts_gives_the_same_matches(monkeypatch, part):
    random = np.random.default_rng(0)
    corpus = [random.integers(3, size=9).tolist() for _ in range(20)]
    queries = [random.integers(3, size=12).tolist() for _ in range(4)]
    at_once = find_copies(queries, corpus)
    monkeypatch.setattr(copying, "_PART_TOKENS", part)
    for match, by_part, query in zip(at_once, find_copies(queries, iter(corpus)), queries, strict=True):
        assert by_part.lengths.tolist() == match.lengths.tolist()
        for start, (length, document) in enumerate(zip(by_part.lengths, by_part.documents, strict=True)):
            wanted = query[start : start + length]
            assert any(corpus[document][i : i + length] == wanted for i in range(10 - length))


def test_spans_leave_out_runs_inside_a_longer_run():
    match = Match(np.array([1, 4, 3, 2, 3, 2, 1, 2, 1]), np.array([0, 5, 5, 5, 7, 7, 7, 0, 0]))
    assert match.spans(3) == [(1, 5, 5), (4, 7, 7)]
    assert match.spans(2) == [(1, 5, 5), (4, 7, 7), (7, 9, 0)]
    assert match.spans(5) == []


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_novelty_matches_a_set_of_n_grams(n):
    random = np.random.default_rng(1)
    corpus = [random.integers(4, size=30).tolist() for _ in range(3)]
    queries = [random.integers(4, size=20).tolist() for _ in range(2)]
    known = {tuple(row[i : i + n]) for row in corpus for i in range(len(row) - n + 1)}
    grams = [tuple(row[i : i + n]) for row in queries for i in range(len(row) - n + 1)]
    expected = sum(gram not in known for gram in grams) / len(grams)
    assert measure_novelty(find_copies(queries, corpus), n) == pytest.approx(expected)


def test_novelty_of_n_grams_longer_than_every_text_is_none():
    assert measure_novelty(find_copies([[7, 8, 9]], [[1, 2, 3]]), 4) is None


@pytest.fixture(scope="module")
def report(tiny):
    tokenizer = tiny[1]
    samples = ["He saw the fox went to the old well at night.", "wise & <b>old</b>, slept all day"]
    control = ["A hen was at the mill at noon.", "No."]
    ids = ([tokenizer.encode(text) for text in texts] for texts in (samples, control))
    return search_training_text(tokenizer, *ids, TRAINING)


def test_report_gives_the_longest_copy_and_the_novelty_of_samples_and_control(report, tiny):
    samples, control = report.rows
    assert samples["text"] == "samples"
    assert samples["longest_tokens"] == len(tiny[1].encode("wise & <b>old</b>, slept all day")) - 1, "'wise' differs"
    lengths = [match.longest for match in report.samples]
    assert samples["mean_longest_tokens"] == sum(lengths) / 2
    assert {n: samples[f"novel_{n}"] for n in (2, 4, 8)} == {n: measure_novelty(report.samples, n) for n in (2, 4, 8)}
    assert samples["novel_4"] < control["novel_4"]
    assert report.to_dict()["rows"] == report.rows
    assert report.to_dict()["longest_copy"] == {"text": " & <b>old</b>, slept all day", "training_document": 1}
    curves = report.novelty_curves(6)
    assert all(len(curve) == 6 and curve == sorted(curve) for curve in curves.values())


def test_copied_runs_are_marked_and_all_text_is_escaped(report):
    shown = report.show(1, min_tokens=4)
    assert shown.count("<mark") == 1
    assert "&lt;b&gt;old&lt;/b&gt;" in shown
    assert "<b>" not in shown
    assert "as in: An owl, wise &amp; &lt;b&gt;old" in shown
    assert report.show(1, min_tokens=100).count("<mark") == 0
    assert "The sample with the longest run" in report._repr_html_()


def test_overlapping_runs_are_marked_in_turn_and_longer_runs_darker():
    lengths = [4, 0, 3, 0, 0, *[0] * 3, *range(20, 0, -1)]  # runs of 4, of 3 that begins in it, and of 20
    match = Match(np.array(lengths), np.zeros(28, int))
    text = "abcdefghijklmnopqrstuvwxyzAB"
    shown = copying.CopyReport([match], [], [list(text)], {}).show(0, min_tokens=2)
    assert re.findall(r"<mark[^>]*>(\w+)</mark>", shown) == ["abcd", "e", text[8:]]
    assert re.findall(r"230,159,0,([\d.]+)", shown) == ["0.37", "0.31", "0.90"]
    assert unescape(re.sub("<[^>]*>", "", shown)) == text


def test_marks_leave_the_text_unchanged(report):
    for number, pieces in enumerate(report.sample_pieces):
        assert unescape(re.sub("<[^>]*>", "", report.show(number, min_tokens=2))) == "".join(pieces)


def test_a_character_of_several_tokens_is_not_split(tiny):
    text = "caf\u00e9 \u4e16\u754c \U0001f98a end"
    ids = tiny[1].encode(text)
    assert len(ids) > len(text) / 2
    assert "".join(copying._split_tokens(tiny[1], ids)) == text
