"""Is a model copying? The longest runs of tokens that a text shares with the training text, found by suffix arrays.

All suffixes of the training text are sorted once; then every run of a text is found by bisection, for all its
positions at the same time. Large corpora are searched part by part, so memory stays flat. What real, held-out text
shares with the training text in the same way is the control: some overlap is the language itself.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from helpers.display import html_table
from helpers.evaluation.suffix_array import NO_ID, SuffixArray
from helpers.settings import SettingsError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

_PART_TOKENS = 4_000_000  # of the training text searched at once; a part takes about 40 bytes a token


@dataclass(frozen=True)
class Match:
    """What one text shares with the training text.

    Attributes:
        lengths: (tokens,) longest run from each token on that stands in the training text.
        documents: (tokens,) number of a training document that has it.
    """

    lengths: "np.ndarray"
    documents: "np.ndarray"

    @property
    def longest(self) -> int:
        """Longest run, in tokens."""
        return int(self.lengths.max(initial=0))

    def spans(self, min_tokens: int) -> list[tuple[int, int, int]]:
        """Return (begin, end, document) of the runs of at least `min_tokens` that lie in no longer one."""
        found, reached = [], 0
        for begin, length in enumerate(self.lengths.tolist()):
            if length >= min_tokens and begin + length > reached:
                reached = begin + length
                found.append((begin, reached, int(self.documents[begin])))
        return found


def find_copies(queries: Sequence[Sequence[int]], corpus: Iterable[Sequence[int]]) -> list[Match]:
    """Return what each query shares with a corpus of documents; no run goes across two documents.

    Args:
        queries: ids of each text that is asked about.
        corpus: ids of each training document, read once, some million tokens at a time.
    """
    import numpy as np

    separated = [np.append(np.asarray(query, np.int64), NO_ID) for query in queries]
    joined = np.concatenate([*separated, np.empty(0, np.int64)])
    lengths, documents = np.zeros(len(joined), np.int64), np.full(len(joined), -1)
    for ids, starts, first in _parts(corpus):
        here, places = SuffixArray(ids).longest_matches(joined)
        longer = here > lengths
        lengths[longer] = here[longer]
        documents[longer] = first + np.searchsorted(starts, places[longer], side="right") - 1
    cuts = np.cumsum([len(query) for query in separated])[:-1]
    return [
        Match(part[:-1], numbers[:-1])
        for part, numbers in zip(np.split(lengths, cuts), np.split(documents, cuts), strict=True)
    ]


def _parts(corpus: Iterable[Sequence[int]]) -> Iterator[tuple["np.ndarray", list[int], int]]:
    """Yield (ids, where each document starts, number of the first), some million tokens at a time."""
    import numpy as np

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


def novelty(matches: Sequence[Match], n: int) -> float:
    """Return the share of the texts' n-grams that the training text does not have (https://arxiv.org/abs/2111.09509).

    >>> import numpy as np
    >>> novelty([Match(np.array([3, 2, 1, 1]), np.zeros(4, int))], 2)
    0.3333333333333333
    """
    import numpy as np

    starts = np.concatenate([match.lengths[: max(0, len(match.lengths) - n + 1)] for match in matches])
    return float((starts < n).mean()) if len(starts) else 0.0


def words(text: str) -> list[str]:
    """Return the words of a text without case and punctuation, which hide no copy.

    >>> words("The Fox -- and the Owl!")
    ['the', 'fox', 'and', 'the', 'owl']
    """
    return re.findall(r"\w+", text.casefold())


def longest_in_words(texts: Sequence[str], corpus: Iterable[str]) -> list[int]:
    """Return the longest run of words that each text shares with a corpus, whatever their case and punctuation."""
    numbers: dict[str, int] = {}  # of the words that are asked about; all others match nothing
    queries = [[numbers.setdefault(word, len(numbers)) for word in words(text)] for text in texts]
    documents = ([numbers.get(word, NO_ID) for word in words(text)] for text in corpus)
    return [match.longest for match in find_copies(queries, documents)]


@dataclass(frozen=True)
class CopyReport:
    """What samples share with the training text, and what held-out text of the same length shares with it.

    Attributes:
        samples: a match for each sample.
        control: a match for each held-out text.
        sample_pieces: the text of each token of each sample.
        sample_words: longest run of each sample in words, whatever their case and punctuation.
        control_words: the same of each held-out text.
        titles: training document -> its first line, of those that the samples share the longest runs with.
    """

    samples: list[Match]
    control: list[Match]
    sample_pieces: list[list[str]]
    sample_words: list[int]
    control_words: list[int]
    titles: dict[int, str]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for the samples and one for the control: longest runs, and the share of n-grams that are new."""
        return [
            {
                "text": name,
                "texts": len(matches),
                "longest_tokens": max(match.longest for match in matches),
                "mean_longest_tokens": sum(match.longest for match in matches) / len(matches),
                "longest_words": max(in_words),
                **{f"novel_{n}": novelty(matches, n) for n in (2, 4, 8)},
            }
            for name, matches, in_words in (
                ("samples", self.samples, self.sample_words),
                ("held-out text", self.control, self.control_words),
            )
        ]

    def novelty_curves(self, max_n: int = 12) -> dict[str, list[float]]:
        """Return the novelty of n-grams for n = 1 to `max_n`, of the samples and of the control."""
        return {
            name: [novelty(matches, n) for n in range(1, max_n + 1)]
            for name, matches in (("samples", self.samples), ("held-out text", self.control))
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the two rows and the longest copy, ready for JSON."""
        number = max(range(len(self.samples)), key=lambda i: self.samples[i].longest)
        begin, end, document = max(self.samples[number].spans(1), key=lambda s: s[1] - s[0], default=(0, 0, -1))
        copied = "".join(self.sample_pieces[number][begin:end])
        return {"rows": self.rows, "longest_copy": {"text": copied, "training_document": document}}

    def show(self, number: int, *, min_tokens: int = 6) -> str:
        """Return one sample as HTML: runs of `min_tokens` and more marked, the longer the darker; all of it escaped."""
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

    def _repr_html_(self) -> str:
        table = html_table(list(self.rows[0]), (list(row.values()) for row in self.rows))
        worst = max(range(len(self.samples)), key=lambda i: self.samples[i].longest)
        said = "The sample with the longest run; marked is what stands in the training text:"
        return f"{table}<p>{said}</p>{self.show(worst)}"


def report(
    tokenizer: "PreTrainedTokenizerBase",
    samples: Sequence[Sequence[int]],
    control: Sequence[Sequence[int]],
    training: Sequence[str],
) -> CopyReport:
    """Look for the samples, and for held-out text, in the training documents; show a bar after two seconds.

    Args:
        tokenizer: the model's.
        samples: token ids of each sample, without its prompt.
        control: token ids of each held-out text, about as long.
        training: the documents the model was trained on; a column of a data set is read as it is needed.

    Raises:
        SettingsError: there is no sample, no held-out text or no training document.
    """
    from tqdm.auto import tqdm

    for name, given in (("sample", samples), ("held-out text", control), ("training document", training)):
        if not len(given):
            raise SettingsError(f"There is no {name}: copies are looked for in at least one of each.")
    texts = [tokenizer.decode(list(ids)) for ids in (*samples, *control)]
    with tqdm(total=2 * len(training), unit="documents", delay=2, leave=False) as bar:
        found = find_copies([*samples, *control], _counted(_tokenised(training, tokenizer), bar))
        in_words = longest_in_words(texts, _counted(training, bar))
    n = len(samples)
    pieces = [_pieces(tokenizer, ids) for ids in samples]
    documents = {document for match in found[:n] for _, _, document in match.spans(2)}
    titles = {number: training[number].strip().split("\n")[0][:60] for number in sorted(documents)}
    return CopyReport(found[:n], found[n:], pieces, in_words[:n], in_words[n:], titles)


def _counted(documents: Iterable[Any], bar: Any) -> Iterator[Any]:
    for document in documents:
        yield document
        bar.update()


def _tokenised(documents: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> Iterator[list[int]]:
    for start in range(0, len(documents), 1000):
        yield from tokenizer(list(documents[start : start + 1000]), verbose=False)["input_ids"]


def _pieces(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds: joined, they are the text, even where a character has several tokens."""
    so_far = [tokenizer.decode(list(ids[:n])).rstrip("\ufffd") for n in range(len(ids))]
    so_far.append(tokenizer.decode(list(ids)))
    return [after[len(before) :] for before, after in pairwise(so_far)]
