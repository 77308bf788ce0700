"""Read a study file and check all of it; each fault is reported in one sentence with its place in the file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from helpers.course import declared_parameters, find_notebook
from helpers.display import did_you_mean, first_line, quoted
from helpers.paths import ASSETS, similar_paths, stored_path
from helpers.schema import allowed
from helpers.settings import PATH_SETTINGS, SettingsError, TrainingSettings, known_settings
from helpers.studies.comparability import Fault, metric_faults, ranking_faults
from helpers.studies.study import Budgets, Range, Study

STUDIES = ASSETS / "studies"
_MAX_FAULTS = 50  # to list
_EXPECTED = {  # for entries that are not a single value
    "settings": "write `name: value`, one per line",
    "vary": "write `setting: [value, value]` or a range, one per line",
    "notebooks": 'it must be a list such as ["03", "04"]',
    "budgets": "write trials, hours or disk_gib, one per line",
}


def find_study(name: str) -> Path:
    """Return the study file at a path, or a shipped one by name; raise `SettingsError` if there is none."""
    shipped = {path.stem: path for path in sorted(STUDIES.glob("*.yaml"))}
    if Path(name).is_file():
        return Path(name)
    if name in shipped:
        return shipped[name]
    suggestion = did_you_mean(name, similar_paths(name, shipped) or shipped)
    raise SettingsError(f"There is no study file {name!r}{suggestion}")


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, of which YAML takes the last value without a warning, and aliases.

    Each alias can contain many others: a few lines of them could fill the memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            problem = "an alias (*name) is not allowed, write the value itself"
            raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                problem = f"{key.value!r} is set twice, keep one of the two"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


def read_study(path: Path) -> Study:
    """Read a study file and check all of it.

    Raises:
        SettingsError: one sentence per fault, each with the file and the faulty entry.
    """
    try:  # as bytes: YAML is UTF-8, or UTF-16 with a BOM, as written by PowerShell's `>`
        values = yaml.load(path.read_bytes(), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: such as an impossible date
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise SettingsError(
            f"{path.name}{where}: this cannot be read as YAML ({problem}): "
            "correct it, save the file as UTF-8, and in double quotes write / instead of \\."
        ) from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path.name}: a study is a mapping with at least `vary`: see {STUDIES}.")
    values = {str(name): value for name, value in values.items()}
    try:
        study = Study.model_validate({"study": path.stem, "vary": {}, **_resolve_paths(values, path.absolute().parent)})
    except ValidationError as error:
        faults = [(fault["loc"], _describe_fault(fault, values)) for fault in error.errors()]
    else:
        faults = [*_faults_between_entries(study)]
    if faults:
        located = {sentence: ".".join(map(str, location)) for location, sentence in faults}
        lines = [f"{path.name}, {place}: {sentence}" for sentence, place in located.items()]
        more = [f"{len(lines) - _MAX_FAULTS:,} more faults are not listed."] if len(lines) > _MAX_FAULTS else []
        raise SettingsError("\n".join(lines[:_MAX_FAULTS] + more))
    return study.model_copy(update={"storage": _make_file_absolute(study.storage, path.absolute().parent)})


def _make_file_absolute(address: str, folder: Path) -> str:
    """Return a database address with an absolute SQLite path: a trial's kernel works in another folder.

    >>> _make_file_absolute("sqlite:///study.db", Path("/mine"))
    'sqlite:////mine/study.db'
    """
    scheme, _, file = address.partition(":///")
    is_file = scheme.startswith("sqlite") and file and not file.startswith((":memory:", "file:"))
    return f"{scheme}:///{(folder / file).as_posix()}" if is_file else address


def _resolve_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a study's entries with paths made absolute if they exist relative to the study file's folder."""

    def resolve(name: Any, value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(name, each) for each in value]
        return stored_path(value, folder=folder) if name in PATH_SETTINGS and isinstance(value, str) else value

    return {
        section: {name: resolve(name, value) for name, value in entries.items()}
        if isinstance(entries, dict)
        else entries
        for section, entries in values.items()
    }


def _describe_fault(fault: ErrorDetails, values: dict[str, Any]) -> str:
    """Turn a fault reported by pydantic into one sentence."""
    *parents, name = fault["loc"]
    if fault["type"] == "value_error":
        sentence = str(fault["ctx"]["error"])
        if fault["loc"] == ("study",) and "study" not in values:
            sentence += " The study has the file's name: rename the file, or set `study:` in it."
        return sentence
    kind = {"budgets": Budgets, "vary": Range}[parents[0]] if parents else Study
    if fault["type"] == "extra_forbidden":
        if name in known_settings():
            return f"{name} is a setting of the runs: write it under `settings`."
        message = f"There is no {name!r} here" if parents else f"A study has no {name!r}"
        return f"{message}{did_you_mean(str(name), kind.model_fields)}"
    if fault["type"] == "missing":
        return f"The range of {parents[-1]} lacks {name}."
    expected = _EXPECTED.get(name) or f"it must be {allowed(kind.model_fields[name])}"
    return f"{name} = {quoted(fault['input'])} is not allowed: {expected}."


def _faults_between_entries(study: Study) -> Iterator[Fault]:
    """Find faults that involve more than one entry."""
    for name in study.settings.keys() & study.vary.keys():
        yield ("vary", name), f"{name} is also under `settings`: keep it in one of the two."
    yield from ranking_faults(study.vary, study.optimise, prune=study.prune)
    notebooks = [find_notebook(name) for name in study.notebooks]
    yield from metric_faults(study.optimise, notebooks)
    declared = set().union(*map(declared_parameters, notebooks)) if notebooks else TrainingSettings.model_fields.keys()
    for section, entries in (("settings", study.settings), ("vary", study.vary)):
        for name in entries.keys() - declared:
            yield (section, name), f"None of the notebooks {', '.join(study.notebooks) or '[]'} takes {name!r}."
