"""The split into training, validation and test: by whole documents, seeded, near-duplicates on one side only.

One continuous text is split by position instead.
"""

from dataclasses import dataclass

import numpy as np

from helpers.data.duplicates import Fingerprints, are_first
from helpers.settings import DataSettings, SettingsError

# The part of a document is a position in SPLITS, UNDECIDED or LEFT_OUT. Their order matters: of documents that are
# equal or nearly so, the one in the greatest part stays, because the test must not contain anything of the other two.
SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(len(SPLITS))
UNDECIDED, LEFT_OUT = -1, -2


@dataclass(frozen=True)
class Split:
    """The part of each document, and why.

    Attributes:
        part: a position in `SPLITS`, or `LEFT_OUT`. (documents,)
        is_first: whether it is the first of equal documents. (documents,) bool
        group: the first document of its group of near-duplicates. (documents,)
    """

    part: np.ndarray
    is_first: np.ndarray
    group: np.ndarray


def split_by_document(fingerprints: Fingerprints, given: np.ndarray, settings: DataSettings) -> Split:
    """Find the duplicates among documents and assign each document to a part; `SettingsError`: there are too few.

    `given` is the part that the source itself gives each document, or `UNDECIDED`. (documents,)
    """
    is_first = fingerprints.find_first_copies(-given)
    group = fingerprints.group_near_duplicates(is_first)
    return Split(assign_parts(given, is_first, group, settings), is_first, group)


def split_by_position(sizes: np.ndarray, given: np.ndarray, settings: DataSettings) -> Split:
    """Split the passages of one continuous text: its beginning for training, then validation, its end for the test.

    At random, each test passage would have its neighbours in the training text, which tell how it goes on. For the
    same reason repeated passages stay: they are a part of the text.

    `sizes` are the bytes of each passage, `given` is as in `split_by_document`. (passages,) `SettingsError`: there are
    too few passages.
    """
    part, missing = given.copy(), [name for name in (TEST, VALIDATION) if name not in given]
    pool = np.flatnonzero(np.isin(given, (UNDECIDED, TRAIN)))
    if missing and len(pool) <= len(missing):
        raise SettingsError(
            f"{settings.source!r} is one continuous text of {sizes.sum():,} bytes, which is too short to be split: "
            "give more text; if it holds several documents, say in document_separator what separates them."
        )
    part[pool] = TRAIN
    shares = {VALIDATION: settings.validation_share, TEST: settings.test_share}
    n_after = sizes[pool][::-1].cumsum()[::-1]  # bytes from each passage to the end of the text
    n_left, end = len(missing), len(pool)
    wanted = 0.0
    for name in missing:  # from the end of the text
        wanted += shares[name] * sizes[pool].sum()
        start = max(n_left, min(end - 1, int(np.searchsorted(-n_after, -wanted))))
        part[pool[start:end]], end, n_left = name, start, n_left - 1
    return Split(part, np.ones(len(part), bool), np.arange(len(part)))


def assign_parts(given: np.ndarray, is_first: np.ndarray, group: np.ndarray, settings: DataSettings) -> np.ndarray:
    """Return the part of each document; arguments, shapes and errors as in `split_by_document` and `Split`."""
    part = np.where(is_first, given, LEFT_OUT)
    if settings.near_duplicates == "remove":
        part[~are_first(group, -given)] = LEFT_OUT  # one of each group stays: if it has some of the test, the test's
    missing = [name for name in (TEST, VALIDATION) if name not in given]
    if missing:
        # A source with a test of its own but no validation gives up some of its training text.
        pool = np.isin(part, (UNDECIDED, TRAIN))
        part[pool] = _draw_parts(group[pool], missing, settings)
    return _keep_groups_together(part, group)


def _draw_parts(group: np.ndarray, missing: list[int], settings: DataSettings) -> np.ndarray:
    """Draw the missing parts at random, a whole group at a time; all other documents are for training."""
    shares = {VALIDATION: settings.validation_share, TEST: settings.test_share}
    groups, sizes = np.unique(group, return_counts=True)
    if len(groups) <= len(missing):
        larger = ", a larger max_tokens" if settings.max_tokens else ""
        raise SettingsError(
            f"{settings.source!r} has {len(groups)} different document{'s' * (len(groups) != 1)} for "
            f"{len(missing) + 1} parts: give more documents{larger}, or say in document_separator what separates them."
        )
    drawn = np.full(len(groups), TRAIN, np.int8)
    shuffled = np.random.default_rng(settings.seed).permutation(len(groups))
    for number, part in enumerate(missing):
        room = n_documents = max(1, round(len(group) * shares[part]))
        n_spare = (drawn == TRAIN).sum() - len(missing) + number  # each later part needs a group, and so does training
        for place in shuffled:  # skips a group that is too large for the room that is left
            if drawn[place] == TRAIN and sizes[place] <= room:
                drawn[place], room, n_spare = part, room - sizes[place], n_spare - 1
            if not room or not n_spare:
                break
        if room == n_documents:  # every group is larger than this part should be: take the smallest
            drawn[np.where(drawn == TRAIN, sizes, sizes.max() + 1).argmin()] = part
    return drawn[np.searchsorted(groups, group)]


def _keep_groups_together(part: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Leave out near-duplicates of a document in a part that matters more: the test most, then the validation."""
    strongest = np.full(len(part), LEFT_OUT, np.int8)
    np.maximum.at(strongest, group, part)
    return np.where(part == strongest[group], part, LEFT_OUT)
