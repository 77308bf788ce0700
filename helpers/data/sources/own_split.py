"""A source's own split: the part of each file in a folder or split of a data set, and the files not to read."""

import functools
import glob
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

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
    If they indicate only a test or a validation, all other files are for training. A Hub card (README.md) with several
    configurations says which files belong to the chosen one.

    Raises:
        SettingsError: there is no such split or configuration, or no file for training.
    """
    names = {file: file.relative_to(folder).as_posix() for file in files}
    descriptions = [file for file in files if _DESCRIPTION_NAME.fullmatch(names[file])]
    if len(descriptions) == len(files):
        descriptions = []
    read = in_order({*files}.difference(descriptions))  # the order determines the random draws of a split
    by_card = _files_by_card(folder, read, settings) if len(read) > 1 else {}
    files_by_part: dict[str, list[Path]] = {}
    for part, listed in (by_card or {"": read}).items():
        for file in in_order({*listed}):
            files_by_part.setdefault(part or part_of(names[file]), []).append(file)
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


def _files_by_card(folder: Path, read: Sequence[Path], settings: DataSettings) -> dict[str, list[Path]]:
    """Return the files of the chosen configuration by part, as listed in the README.md card of a Hub data set.

    The part is '' if the card does not say; {} if there is no card, or only one configuration without a split.

    Raises:
        SettingsError: the card lacks the configuration, has several and none is chosen, or no file of the chosen one
            exists.
    """
    configurations = _configurations(folder / "README.md")
    if not configurations:
        return {}
    default = [name for name, entry in configurations.items() if name == "default" or entry.get("default")]
    wanted = settings.source_config or next(iter(configurations if len(configurations) == 1 else default), "")
    if wanted not in configurations:
        missing = f"no configuration {wanted!r}" if wanted else f"{len(configurations)} configurations"
        raise SettingsError(
            f"{settings.source!r} has {missing}: set source_config to one of {list(configurations)[:20]}, as "
            "listed in its README.md."
        )
    entry = configurations[wanted]
    listed = entry.get("data_files") or (f"{entry['data_dir']}/**" if entry.get("data_dir") else "**")
    parts: dict[str, list[Path]] = {}
    for item in listed if isinstance(listed, list) else [listed]:
        split, patterns = (item.get("split", ""), item.get("path", [])) if isinstance(item, dict) else ("", item)
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            if files := {*_matching(folder, str(pattern))}.intersection(read):
                parts.setdefault(part_of(str(split)), []).extend(files)
    if not parts and len(configurations) > 1:
        raise SettingsError(
            f"{settings.source!r} has no file of the configuration {wanted!r}, which README.md describes as {listed}: "
            "copy the repository with its folders, or move README.md away to read the files by their names."
        )
    has_split = "train" in parts and len(parts) > 1
    return parts if has_split or len(configurations) > 1 else {}


def _configurations(card: Path) -> dict[str, dict[str, Any]]:
    """Return the configurations in the metadata of a card; {} if it has none that can be read."""
    try:
        head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL)
        entries = (yaml.safe_load(head[1]) or {}).get("configs", []) if head else []
        return {str(entry["config_name"]): entry for entry in entries}  # YAML reads 2024 as a number
    except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError, KeyError):
        return {}  # not a Hub card, and nothing depends on it


def _matching(folder: Path, pattern: str) -> list[Path]:
    from datasets.data_files import resolve_pattern

    try:
        return [Path(file) for file in resolve_pattern(pattern, glob.escape(str(folder.absolute())))]
    except FileNotFoundError:
        return []


def _join_shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
