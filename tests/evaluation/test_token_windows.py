import random
import tracemalloc

import numpy as np
import pytest

from helpers.evaluation.token_windows import batches, pieces, token_stream, windows
from helpers.model import load_tokenizer
from helpers.settings import NOTEBOOKS

SHARED = NOTEBOOKS.parent.parent / "shared" / "data"
ODD = "A\n\n  b \n c\u00a0d\u2003e  \tf'll  don't\u3000g 12 345\r\n\r\nh <|endoftext|> i\x1cj  \n"


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_text_cut_in_pieces_has_the_tokens_of_the_whole(size):
    tokenizer = load_tokenizer("pocket")
    signs = random.Random(0).choices("ab 1.,'\n\t\u00a0\u2003\u00e9\u4e16", k=3000)
    for text in (ODD, "".join(signs)):
        parts = list(pieces(text, size))
        assert "".join(parts) == text
        assert len(parts) > 3
        assert [token for part in parts for token in tokenizer.encode(part)] == tokenizer.encode(text)


@pytest.mark.skipif(
    not (SHARED / "tinyshakespeare.txt").exists(), reason="needs tinyshakespeare.txt beside the project"
)
def test_a_real_text_in_pieces_has_the_tokens_of_gpt2s_own_tokenizer():
    from tokenizers import ByteLevelBPETokenizer

    folder = SHARED / "gpt2-tokenizer"
    tokenizer = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    text = (SHARED / "tinyshakespeare.txt").read_text(encoding="utf-8")[:200_000]
    assert [token for part in pieces(text, 1000) for token in tokenizer.encode(part).ids] == tokenizer.encode(text).ids


def test_a_text_with_no_place_to_cut_stays_whole():
    assert list(pieces("x" * 50, 10)) == ["x" * 50]
    assert list(pieces("", 10)) == [""]


def test_the_stream_ends_each_document_and_says_whose_each_token_is(tiny):
    tokenizer, read = tiny[1], []
    parts = token_stream(["A fox.", "", "An owl."], tokenizer, with_ends=True, advance=read.append)
    ids, owners = np.concatenate(list(parts), axis=1)
    end = tokenizer.eos_token_id
    first, last = tokenizer.encode("A fox."), tokenizer.encode("An owl.")
    assert ids.tolist() == [end, *first, end, end, *last, end]
    assert owners.tolist() == [0, *[0] * len(first), 0, 1, *[2] * len(last), 2]
    assert sum(read) == len("A fox.An owl.")


@pytest.mark.parametrize(
    ("n", "stride", "width"), [(50, 4, 9), (50, 8, 9), (7, 3, 9), (9, 1, 9), (10, 8, 9), (2, 1, 9)]
)
@pytest.mark.parametrize("arriving", [1, 5, 50])
def test_overlapping_windows_score_every_token_but_the_first_once(n, stride, width, arriving):
    stream = np.stack([np.arange(n)] * 2)
    found = list(windows((stream[:, i : i + arriving] for i in range(0, n, arriving)), stride, width))
    assert [token for _, scored in found for token in scored.tolist()] == list(range(1, n))
    assert all(ids[-len(scored) :].tolist() == scored.tolist() for ids, scored in found)
    assert all(len(ids) == width for ids, _ in found[:-1])


def test_windows_side_by_side_leave_out_the_first_of_each():
    found = windows([np.stack([np.arange(9)] * 2)], 4, 4)
    assert [scored.tolist() for _, scored in found] == [[1, 2, 3], [5, 6, 7]], "the ninth has nothing before it"


def test_batches_hold_windows_of_one_shape():
    wanted = windows([np.stack([np.arange(23)] * 2)], 4, 9)
    shapes = [(ids.shape, owners.shape) for ids, owners in batches(wanted, 2)]
    assert shapes == [((1, 9), (1, 8)), ((2, 9), (2, 4)), ((1, 9), (1, 4)), ((1, 7), (1, 2))]


class CharacterTokenizer:
    """Makes a token of each character, and no memory of its own."""

    eos_token_id = 0

    def __call__(self, texts, verbose):
        return {"input_ids": [list(map(ord, text)) for text in texts]}


def test_memory_does_not_grow_with_the_text():
    def peak(text):
        tracemalloc.start()
        stream = token_stream([text], CharacterTokenizer(), with_ends=True, advance=lambda n: None)
        n_scored = sum(owners.size for _, owners in batches(windows(stream, 64, 65), 8))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return n_scored, most

    (n_short, short), (n_long, long) = (peak("The fox went home. " * n) for n in (10_000, 60_000))
    assert n_long - 1 == 6 * (n_short - 1)
    assert long < 1.1 * short
