"""A source's own split: the part of each file in a folder or split of a data set, and the files not to read."""

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from helpers.data.sources.paths import in_order, other_files
from helpers.settings import DataSettings, SettingsError

Content = TypeVar("Content")
# The words that `datasets` recognises in a Hub repository, and some that people use for their own files.
_PART_OF_WORD = {
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "heldout", "holdout"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("train", "training"), "train"),
}
# Files in the main folder that describe a data set or a project.
_DESCRIPTION_NAME = re.compile(
    r"(readme|licen[cs]e|copying|notice|authors|citation|contributing|changelog|code_of_conduct|data_?card|"
    r"dataset_infos?|dataset_dict|metadata|requirements.*|constraints)(\.\w+)*",
    re.IGNORECASE,
)
_MAX_NAMES = 4  # that a note lists


@functools.lru_cache(maxsize=1024)
def part_of(name: str) -> str:
    """Return the part that the name of a file or split, with its folders, indicates; '' if it indicates none.

    A folder named exactly like a part decides for all files in it; otherwise the file's own words do, then those of its
    folders. If a name indicates several parts, test wins, then validation, so that no test is trained on.

    >>> part_of("my_train (1).txt"), part_of("dev/part-0.csv"), part_of("data/TestSet.jsonl"), part_of("contest.txt")
    ('train', 'validation', 'test', '')
    """
    *folders, file = name.split("/")
    exact = [_PART_OF_WORD[folder.lower()] for folder in folders if folder.lower() in _PART_OF_WORD]
    for parts in (exact, _parts_in(file), [part for folder in folders for part in _parts_in(folder)]):
        if parts:
            return min(parts, key=list(dict.fromkeys(_PART_OF_WORD.values())).index)
    return ""


def _parts_in(name: str) -> list[str]:
    """Return the parts that the words of a name, such as `trainData`, `my_train` or `testset`, indicate."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    stems = (re.sub(r"(?<=.)(data|set|split)$", "", word) for word in words)
    return [_PART_OF_WORD[word] for word in stems if word in _PART_OF_WORD]


def divide_files(
    folder: Path, files: Sequence[Path], settings: DataSettings, note: Callable[[str], None]
) -> dict[str, list[Path]]:
    """Return which files of a folder are read, by part ('' if still to be split); `note` gets what is left out and why.

    If the names indicate training text and a test or a validation, these files are the split and the rest is left out.
    If they indicate only a test or a validation, all other files are for training.

    Raises:
        SettingsError: there is no such split, or no file for training.
    """
    names = {file: file.relative_to(folder).as_posix() for file in files}
    descriptions = [file for file in files if _DESCRIPTION_NAME.fullmatch(names[file])]
    if len(descriptions) == len(files):
        descriptions = []
    read = in_order({*files}.difference(descriptions))  # the order determines the random draws of a split
    files_by_part: dict[str, list[Path]] = {}
    for file in read:
        files_by_part.setdefault(part_of(names[file]), []).append(file)
    parts = _choose_parts(files_by_part, names, settings)
    unread = in_order({*read}.difference(*parts.values()))
    if "" not in parts:
        by_part = [f"{part}: {_join_shortened([names[file] for file in parts[part]])}" for part in parts]
        note(f"The split is the source's own, by the names of its files ({'; '.join(by_part)}).")
    for left_out, reason in ((descriptions, "they describe the data"), (unread, "in no part of the split")):
        if left_out:
            note(f"Left out ({reason}): {_join_shortened([names[file] for file in left_out])}.")
    kinds = Counter(file.suffix.lower() or "no suffix" for file in other_files(folder))
    if kinds:
        counts = [f"{count:,} {suffix}" for suffix, count in kinds.most_common()]
        note(f"Left out (other kinds of files): {_join_shortened(counts)}.")
    return parts


def _choose_parts(
    files_by_part: Mapping[str, list[Path]], names: Mapping[Path, str], settings: DataSettings
) -> dict[str, list[Path]]:
    parts = {part: files for part, files in files_by_part.items() if part}
    if settings.source_split:
        by_first_word: dict[str, list[Path]] = {}
        for file in (file for files in files_by_part.values() for file in files):
            by_first_word.setdefault(re.split(r"[./-]", names[file], maxsplit=1)[0].lower(), []).append(file)
        return name_parts(by_first_word | parts, settings)
    unnamed = files_by_part.get("", [])
    if set(parts) & {"test", "validation"}:
        if "train" not in parts and unnamed:
            return {"train": unnamed, **parts}
        if len(parts) > 1:
            return name_parts(parts, settings)
    return {"": in_order(file for files in files_by_part.values() for file in files)}


def name_parts(splits: Mapping[str, Content], settings: DataSettings) -> dict[str, Content]:
    """Return a source's splits under our names, leaving out any others, such as `unsupervised`.

    A single split, whatever its name, becomes '' (still to be split). So does the one that `source_split` names.

    Raises:
        SettingsError: there is no such split, or none for training; the message lists those that exist.
    """
    wanted = settings.source_split
    if wanted and wanted not in splits:
        alias = _PART_OF_WORD.get(wanted.lower(), wanted)
        if alias not in splits:
            raise SettingsError(
                f"{settings.source!r} has no split {wanted!r}: set source_split to one of {list(splits)[:20]}."
            )
        wanted = alias
    if wanted or len(splits) == 1:
        return {"": splits[wanted] if wanted else next(iter(splits.values()))}
    parts: dict[str, Content] = {}
    for name in sorted(splits, key=lambda name: name not in _PART_OF_WORD.values()):  # `validation` before `dev`
        if name.lower() in _PART_OF_WORD:
            parts.setdefault(_PART_OF_WORD[name.lower()], splits[name])
    if "train" not in parts:
        raise SettingsError(
            f"{settings.source!r} has no split for training among {list(splits)[:20]}: set source_split to one of them."
        )
    return parts


def _join_shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
