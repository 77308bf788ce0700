"""Measure copying: the longest runs of tokens that samples share with the training text.

A large corpus is searched part by part, so memory use stays flat. Held-out text of the same length is searched too, as
a control, because any two texts share some common phrases.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.data.tokens import TokenStream, batches_of
from helpers.display import PlainTextMixin, cut, html_table, progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_ID = -1  # matches nothing, not even itself: separates documents and marks words that are not in the query
_PART_TOKENS = 4_000_000  # of the training text searched at once; a part takes about 50 bytes per token


def find_longest_matches(query: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find, for each position of a query, the longest run from there that also occurs in the ids.

    Each round extends all runs by one id and drops the places in the ids where no run of the query continues. Few are
    left after some rounds, so the time is about that of reading the ids once.

    Args:
        query: (m,) integers, each `NO_ID` or at least 0.
        ids: (n,) the same.

    Returns:
        (m,) lengths of the runs, and (m,) positions in the ids where they start, meaningless for length 0.

    >>> import numpy as np
    >>> find_longest_matches(np.array([6, 7, 5, 9]), np.array([5, 6, 7, 5, 6, 9]))[0].tolist()
    [3, 2, 1, 1]
    """
    lengths, positions = np.zeros(len(query), np.int64), np.zeros(len(query), np.int64)
    n_ids = 2 + max(query.max(initial=0), ids.max(initial=0))
    query, ids = np.append(query, NO_ID), np.append(ids, NO_ID)  # ends every run
    # Runs start at `starts` in the query and `places` in the ids; `run_of_...` hold the numbers of these runs.
    starts, places = np.arange(len(query)), np.arange(len(ids))
    run_of_start, run_of_place = np.zeros(len(starts), np.int64), np.zeros(len(places), np.int64)
    for depth in itertools.count():
        has_next = query[starts + depth] != NO_ID
        starts, run_of_start = starts[has_next], run_of_start[has_next]
        if not len(starts):
            return lengths, positions
        runs, run_of_start = np.unique(run_of_start * n_ids + query[starts + depth], return_inverse=True)
        extended = run_of_place * n_ids + ids[places + depth]  # with NO_ID, a number that no run has
        run_of_place = np.searchsorted(runs, extended) % len(runs)
        is_same = runs[run_of_place] == extended
        places, run_of_place = places[is_same], run_of_place[is_same]
        place_of_run = np.full(len(runs), -1)
        place_of_run[run_of_place[::-1]] = places[::-1]  # the first place of each run
        is_found = place_of_run[run_of_start] >= 0
        starts, run_of_start = starts[is_found], run_of_start[is_found]
        lengths[starts], positions[starts] = depth + 1, place_of_run[run_of_start]


@dataclass(frozen=True)
class Match:
    """What one text shares with the training text.

    Attributes:
        lengths: (tokens,) the longest run starting at each token that is in the training text.
        documents: (tokens,) the number of a training document that contains it.
    """

    lengths: np.ndarray
    documents: np.ndarray

    @property
    def longest(self) -> int:
        """Longest run, in tokens."""
        return int(self.lengths.max(initial=0))

    def spans(self, min_tokens: int) -> list[tuple[int, int, int]]:
        """Return (begin, end, document) of the runs of at least `min_tokens` that are not part of a longer one."""
        spans, last_end = [], 0
        for begin, length in enumerate(self.lengths.tolist()):
            if length >= min_tokens and begin + length > last_end:
                last_end = begin + length
                spans.append((begin, last_end, int(self.documents[begin])))
        return spans


def find_copies(queries: Sequence[Sequence[int]], corpus: Iterable[Sequence[int]]) -> list[Match]:
    """Find what each query shares with a corpus of documents; no run spans two documents.

    Both consist of token ids; the corpus is read once, a few million tokens at a time.
    """
    separated = [np.append(np.asarray(query, np.int64), NO_ID) for query in queries]
    joined = np.concatenate([*separated, np.empty(0, np.int64)])
    lengths, documents = np.zeros(len(joined), np.int64), np.full(len(joined), -1)
    for ids, starts, first in _split_corpus(corpus):
        part_lengths, positions = find_longest_matches(joined, ids)
        is_longer = part_lengths > lengths
        lengths[is_longer] = part_lengths[is_longer]
        documents[is_longer] = first + np.searchsorted(starts, positions[is_longer], side="right") - 1
    boundaries = np.cumsum([len(query) for query in separated])[:-1]
    return [
        Match(part[:-1], document_numbers[:-1])  # without the separator
        for part, document_numbers in zip(np.split(lengths, boundaries), np.split(documents, boundaries), strict=True)
    ]


def _split_corpus(corpus: Iterable[Sequence[int]]) -> Iterator[tuple[np.ndarray, list[int], int]]:
    """Yield parts of some million tokens: (ids, start position of each document, number of the first document)."""
    rows, starts, first, n = [], [], 0, 0
    for number, ids in enumerate(corpus):
        rows.append(np.append(np.asarray(ids, np.int64), NO_ID))
        starts.append(n)
        n += len(rows[-1])
        if n >= _PART_TOKENS:
            yield np.concatenate(rows), starts, first
            rows, starts, first, n = [], [], number + 1, 0
    if rows:
        yield np.concatenate(rows), starts, first


def measure_novelty(matches: Sequence[Match], n: int) -> float | None:
    """Return the share of the texts' n-grams that are not in the training text (https://arxiv.org/abs/2111.09509).

    None if no text has n tokens.

    >>> import numpy as np
    >>> measure_novelty([Match(np.array([3, 2, 1, 1]), np.zeros(4, int))], 2)
    0.3333333333333333
    """
    # An n-gram is in the training text if the run that starts at its first token has at least n tokens.
    lengths = np.concatenate([match.lengths[: max(0, len(match.lengths) - n + 1)] for match in matches])
    return float((lengths < n).mean()) if len(lengths) else None


@dataclass(frozen=True)
class CopyReport(PlainTextMixin):
    """What samples, and held-out text of the same length as a control, share with the training text.

    Everything is empty if no held-out document was long enough for a prompt.

    Attributes:
        samples, control: one match per sample and per held-out text.
        sample_pieces: for each sample, the text of each of its tokens.
        titles: the first line of each training document, by number, that shares runs with the samples.
    """

    samples: list[Match]
    control: list[Match]
    sample_pieces: list[list[str]]
    titles: dict[int, str]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for the samples and one for the control: their longest runs and shares of new n-grams."""
        return [
            {
                "text": name,
                "texts": len(matches),
                "longest_tokens": max(match.longest for match in matches),
                "mean_longest_tokens": sum(match.longest for match in matches) / len(matches),
                **{f"novel_{n}": measure_novelty(matches, n) for n in (2, 4, 8)},
            }
            for name, matches in (("samples", self.samples), ("held-out text", self.control))
            if matches
        ]

    def novelty_curves(self, max_n: int = 12) -> dict[str, list[float | None]]:
        """Return the novelty of n-grams for n = 1 to `max_n`, for the samples and for the control."""
        return {
            name: [measure_novelty(matches, n) for n in range(1, max_n + 1)]
            for name, matches in (("samples", self.samples), ("held-out text", self.control))
            if matches
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the two rows and the longest copy, ready for JSON."""
        number = self._number_of_longest
        begin, end, document = max(self.samples[number].spans(1), key=lambda s: s[1] - s[0], default=(0, 0, -1))
        copied = "".join(self.sample_pieces[number][begin:end])
        return {"rows": self.rows, "longest_copy": {"text": copied, "training_document": document}}

    def show(self, number: int, *, min_tokens: int = 6) -> str:
        """Return a sample as HTML with copied runs of at least `min_tokens` marked; longer runs are darker."""
        html, reached = "", 0
        tokens = self.sample_pieces[number]
        for begin, end, document in self.samples[number].spans(min_tokens):
            start = max(begin, reached)  # two runs may overlap
            strength = min(0.9, 0.25 + (end - begin - min_tokens) * 0.06)
            where = f"{end - begin} tokens, as in: {self.titles.get(document, f'document {document}')}"
            html += escape("".join(tokens[reached:start]))
            html += (
                f'<mark style="background:rgba(230,159,0,{strength:.2f});color:inherit" title="{escape(where)}">'
                f"{escape(''.join(tokens[start:end]))}</mark>"
            )
            reached = end
        return f"<p style='white-space:pre-wrap'>{html}{escape(''.join(tokens[reached:]))}</p>"

    @property
    def _number_of_longest(self) -> int:
        """Number of the sample with the longest run."""
        return max(range(len(self.samples)), key=lambda i: self.samples[i].longest)

    def _repr_html_(self) -> str:
        if not self.samples:
            return "<p>Not measured: no test document is longer than the prompt of a sample.</p>"
        table = html_table(list(self.rows[0]), (list(row.values()) for row in self.rows))
        caption = "The sample with the longest run; text that is also in the training text is marked:"
        return f"{table}<p>{caption}</p>{self.show(self._number_of_longest)}"


def search_training_text(
    tokenizer: "PreTrainedTokenizerBase",
    samples: Sequence[Sequence[int]],
    control: Sequence[Sequence[int]],
    training: Sequence[str],
) -> CopyReport:
    """Search the training documents for runs of the samples and of held-out text; show a bar after ten seconds.

    `samples`, without their prompts, and `control`, of about the same length, are token ids; the documents may be the
    column of a data set, which is read bit by bit.
    """
    with progress_bar(len(training), unit="documents") as bar:
        matches = find_copies([*samples, *control], _tokenize(training, tokenizer, bar))
    n = len(samples)
    pieces = [_split_tokens(tokenizer, ids) for ids in samples]
    documents = {document for match in matches[:n] for _, _, document in match.spans(2)}
    titles = {number: cut(training[number].strip().split("\n")[0], 60) for number in sorted(documents)}
    return CopyReport(matches[:n], matches[n:], pieces, titles)


def _tokenize(documents: Iterable[str], tokenizer: "PreTrainedTokenizerBase", bar: Any) -> Iterator[np.ndarray]:
    tokens = TokenStream(tokenizer)  # several times as fast as the tokenizer
    for batch in batches_of(documents):
        ids, n_tokens = tokens.encode(batch, with_ends=False)
        bar.update(len(batch))
        yield from np.split(ids, n_tokens.cumsum()[:-1])


def _split_tokens(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds; joined, the pieces give the whole text.

    Decoding each token alone does not work: a character such as an emoji has several tokens, and a part of it decodes
    to U+FFFD. Here the last of these tokens adds the complete character and the others add nothing.
    """
    prefixes = [tokenizer.decode(list(ids[:n])).rstrip("\ufffd") for n in range(len(ids))]
    prefixes.append(tokenizer.decode(list(ids)))
    return [after[len(before) :] for before, after in itertools.pairwise(prefixes)]
