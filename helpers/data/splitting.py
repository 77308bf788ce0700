"""Which document goes to which part: by document, seeded, and with its likes on the same side."""

import numpy as np

from helpers.settings import DataSettings, SettingsError

TRAIN, VALIDATION, TEST = range(3)
LEFT_OUT = -2


def assign(parts: np.ndarray, first: np.ndarray, group: np.ndarray, settings: DataSettings) -> np.ndarray:
    """Return the part of each document, a place in `SPLITS`, or `LEFT_OUT`.

    Args:
        parts: the part the source gave it, or -1. (documents,)
        first: whether it is the first of its equals; the others are left out. (documents,) bool
        group: the first document of its group of near duplicates. (documents,)
        settings: the shares, the seed, and what is done with near duplicates.

    Raises:
        SettingsError: there are too few documents for what is still to be split.
    """
    code = np.where(first, parts, LEFT_OUT)
    if settings.near_duplicates == "remove":
        code[first & _is_later_in_group(parts, group)] = LEFT_OUT
    missing = [name for name in (TEST, VALIDATION) if name not in parts]
    pool = np.isin(code, (-1, TRAIN)) if missing else np.zeros(len(code), bool)
    if missing:
        code[pool] = _drawn(group[pool], missing, settings)
    return _on_one_side(code, group)


def _is_later_in_group(parts: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return which documents are not the one of their group that stays: the test's first, training's last."""
    order = np.lexsort((np.arange(len(group)), -parts, group))
    later = np.zeros(len(group), bool)
    later[order[1:]] = group[order[1:]] == group[order[:-1]]
    return later


def _drawn(group: np.ndarray, missing: list[int], settings: DataSettings) -> np.ndarray:
    """Draw the parts that the source does not bring, whole groups at a time; what is left is for training."""
    shares = {VALIDATION: settings.validation_share, TEST: settings.test_share}
    wanted = {part: max(1, round(len(group) * shares[part])) for part in missing}
    names, sizes = np.unique(group, return_counts=True)
    if len(group) <= sum(wanted.values()) or len(names) <= len(missing):
        raise SettingsError(
            f"{settings.source!r} has {len(names)} different documents: three parts need at least 3. Give more "
            "documents; in a text file a blank line starts a new one, or what document_separator says."
        )
    drawn = np.full(len(names), TRAIN, np.int8)
    shuffled = np.random.default_rng(settings.seed).permutation(len(names))
    for part, n_documents in wanted.items():
        room = n_documents
        for name in shuffled:
            if room and drawn[name] == TRAIN and sizes[name] <= room:
                drawn[name], room = part, room - sizes[name]
            if not room:
                break
        if room == n_documents:  # every group is larger than this part should be
            drawn[np.where(drawn == TRAIN, sizes, sizes.max() + 1).argmin()] = part
    return drawn[np.searchsorted(names, group)]


def _on_one_side(code: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Leave out what is nearly the same as a document of a part that counts more: the test, then the validation."""
    strongest = np.full(len(code), LEFT_OUT, np.int8)
    np.maximum.at(strongest, group, code)
    return np.where(code == strongest[group], code, LEFT_OUT)
