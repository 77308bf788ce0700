"""Which packages the project needs, read from its own files so that no version is repeated, and which are installed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from helpers.environment.access import Access
from helpers.environment.facts import Packages

PYTHONS = ((3, 11), (3, 14))  # the oldest and the newest that the course is tested with

_LOADED = ("torch", "transformers", "datasets", "accelerate", "numpy", "tokenizers")  # what a stale kernel breaks
_ALSO_REPORTED = ("nvidia-ml-py", "pynvml", "tokenizers", "helpers")


def read_packages(access: Access) -> Packages:
    """Return what is required, pinned, installed and loaded."""
    required = _required(access)
    versions = {name: access.version_of(name) for name in [*required, *_ALSO_REPORTED]}
    return Packages(
        installed={name: version for name, version in versions.items() if version},
        required=required,
        pinned=pins(access),
        loaded=read_loaded(access),
    )


def read_loaded(access: Access) -> dict[str, str]:
    """Return the versions of the packages that this Python has imported and keeps using."""
    versions = {name: getattr(access.modules.get(name), "__version__", None) for name in _LOADED}
    return {name: str(version) for name, version in versions.items() if version}


def _required(access: Access) -> dict[str, str]:
    """Return name -> oldest version from pyproject.toml; empty if the course was installed from a wheel.

    It uses regular expressions, because a bare Python 3.10 has neither `tomllib` nor `packaging`.
    """
    path = access.project / "pyproject.toml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    return dict(re.findall(r'"([\w.-]+)>=([\d.]+)', block[1])) if block else {}


def pins(access: Access) -> dict[str, str]:
    """Return the versions that the project is tested with, from constraints.txt; empty without the file."""
    path = access.project / "constraints.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))


def find_stale_imports(loaded: Mapping[str, str], installed: Mapping[str, str | None]) -> list[str]:
    """Return a phrase for each package whose loaded version differs from the installed one."""
    return [
        f"{name} {version} is loaded, {installed[name]} is installed"
        for name, version in loaded.items()
        if installed.get(name) and not _same_version(version, installed[name])
    ]


def _same_version(one: str, other: str) -> bool:
    """Compare versions; the part after `+` counts only if both have it: torch says 2.13.0+cu130, its wheel 2.13.0."""
    (version, _, build), (other_version, _, other_build) = one.partition("+"), other.partition("+")
    return version == other_version and (build == other_build or not build or not other_build)


def version_number(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers for comparisons, without trailing zeros.

    >>> version_number("2.13.0+cu126"), version_number("5.17rc1")
    ((2, 13), (5, 17))
    """
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(part) for part in numbers[0].split(".")] if numbers else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
