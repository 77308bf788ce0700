"""The split into training, validation and test: by whole documents, seeded, near-duplicates kept together.

One continuous text is split by position instead.
"""

from dataclasses import dataclass

import numpy as np

from helpers.data.duplicates import Fingerprints, are_first
from helpers.settings import DataSettings, SettingsError

# A document's part is an index into SPLITS, UNDECIDED or LEFT_OUT. The order matters: of documents that are equal or
# nearly equal, the one with the highest part is kept, because the test must share nothing with the other two.
SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(len(SPLITS))
UNDECIDED, LEFT_OUT = -1, -2


@dataclass(frozen=True)
class Split:
    """The part that each document is assigned to, and why.

    Attributes:
        part: an index into `SPLITS`, or `LEFT_OUT`. (documents,)
        is_first: whether it is the first of its equals. (documents,) bool
        group: the index of the first document in its group of near-duplicates. (documents,)
    """

    part: np.ndarray
    is_first: np.ndarray
    group: np.ndarray


def split_by_document(fingerprints: Fingerprints, given: np.ndarray, settings: DataSettings) -> Split:
    """Find duplicates and assign each document to a part; `SettingsError`: there are too few documents.

    `given` is the part in the source's own split for each document, or `UNDECIDED`. (documents,)
    """
    is_first = fingerprints.find_first_copies(-given)
    group = fingerprints.group_near_duplicates(is_first)
    return Split(assign_parts(given, is_first, group, settings), is_first, group)


def split_by_position(sizes: np.ndarray, given: np.ndarray, settings: DataSettings) -> Split:
    """Split the passages of one continuous text: the beginning for training, then validation, the end for the test.

    In a random split, each test passage would have neighbours in the training text that reveal how it continues.
    Repeated passages stay for a similar reason: they are part of the text.

    `sizes` are the bytes of each passage, `given` is as in `split_by_document`. (passages,) `SettingsError`: there are
    too few passages.
    """
    part, missing = given.copy(), [name for name in (TEST, VALIDATION) if name not in given]
    pool = np.flatnonzero(np.isin(given, (UNDECIDED, TRAIN)))
    if missing and len(pool) <= len(missing):
        raise SettingsError(
            f"{settings.source!r} is one continuous text of {sizes.sum():,} bytes, which is too short to be split: "
            "give more text, or if it holds several documents, set document_separator to what separates them."
        )
    part[pool] = TRAIN
    shares = {VALIDATION: settings.validation_share, TEST: settings.test_share}
    n_after = sizes[pool][::-1].cumsum()[::-1]  # bytes from each passage to the end of the text
    n_left, end = len(missing), len(pool)
    target_bytes = 0.0
    for name in missing:  # from the end of the text
        target_bytes += shares[name] * sizes[pool].sum()
        start = max(n_left, min(end - 1, int(np.searchsorted(-n_after, -target_bytes))))
        part[pool[start:end]], end, n_left = name, start, n_left - 1
    return Split(part, np.ones(len(part), bool), np.arange(len(part)))


def assign_parts(given: np.ndarray, is_first: np.ndarray, group: np.ndarray, settings: DataSettings) -> np.ndarray:
    """Return the part of each document; arguments, shapes and errors as in `split_by_document` and `Split`."""
    part = np.where(is_first, given, LEFT_OUT)
    if settings.near_duplicates == "remove":
        part[~are_first(group, -given)] = LEFT_OUT  # keep one of each group: a test document if there is one
    missing = [name for name in (TEST, VALIDATION) if name not in given]
    if missing:
        # A source with its own test but no validation gives up some of its training text.
        pool = np.isin(part, (UNDECIDED, TRAIN))
        part[pool] = _draw_parts(group[pool], missing, settings)
    return _keep_groups_together(part, group)


def _draw_parts(group: np.ndarray, missing: list[int], settings: DataSettings) -> np.ndarray:
    """Draw the missing parts at random, a whole group at a time; the rest is for training."""
    shares = {VALIDATION: settings.validation_share, TEST: settings.test_share}
    groups, sizes = np.unique(group, return_counts=True)
    if len(groups) <= len(missing):
        advice = ", a larger max_tokens" if settings.max_tokens else ""
        raise SettingsError(
            f"{settings.source!r} has {len(groups)} different document{'s' * (len(groups) != 1)} for "
            f"{len(missing) + 1} parts: give more documents{advice}, or set document_separator to what separates them."
        )
    drawn = np.full(len(groups), TRAIN, np.int8)
    shuffled = np.random.default_rng(settings.seed).permutation(len(groups))
    for number, part in enumerate(missing):
        room = n_documents = max(1, round(len(group) * shares[part]))
        n_spare = (drawn == TRAIN).sum() - len(missing) + number  # each later part needs a group, and so does training
        for index in shuffled:  # skips a group that is larger than the remaining room
            if drawn[index] == TRAIN and sizes[index] <= room:
                drawn[index], room, n_spare = part, room - sizes[index], n_spare - 1
            if not room or not n_spare:
                break
        if room == n_documents:  # every group is larger than this part should be: take the smallest
            drawn[np.where(drawn == TRAIN, sizes, sizes.max() + 1).argmin()] = part
    return drawn[np.searchsorted(groups, group)]


def _keep_groups_together(part: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Drop near-duplicates of a document in a higher-priority part: the test first, then validation."""
    strongest = np.full(len(part), LEFT_OUT, np.int8)
    np.maximum.at(strongest, group, part)
    return np.where(part == strongest[group], part, LEFT_OUT)
