"""A text to paste into an issue: the error, what `explain` says about it, versions, machine, and nothing personal."""

import getpass
import os
import platform
import re
from collections.abc import Iterator
from typing import Any

from helpers.display import fenced, size_text
from helpers.environment import Machine, read_machine
from helpers.environment.facts import UnreadError
from helpers.troubleshooting.explanation import explain, last_error
from helpers.troubleshooting.reading import read

_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "safetensors", "huggingface_hub", "numpy")
_MAX_LINES = 40
# The value after the name of a secret; the name of an option or <a placeholder> is not a value.
_VALUE = r"""(?![<-])(?:"[^"\n]{4,200}"|'[^'\n]{4,200}'|["']?(?:(?i:bearer|basic|token) {1,3})?[^\s"',;]{4,})"""
_NAMES_OF_SECRETS = (
    r"(?i:\b(?:(?:hf_|hub_|access_|auth_)?token(?!izer|s\b)|passw(?:or)?d|pwd|(?:[\w-]{0,20}[_-])?api[_-]?key|"
    r"authorization|(?:\w{0,20}_)?secret)\w{0,20})[\"']?\s{0,3}[=:]\s{0,3}",  # not eos_token_id: 50256
    r"\b[A-Z][A-Z0-9_]{0,40}(?:TOKEN|KEY|SECRET|PASSWORD)[\"']?\s{0,3}[=:]\s{0,3}",  # HF_TOKEN=...
    r"(?i:--[\w-]{0,20}(?:token|passw(?:or)?d|api[_-]?key|secret))\s{1,3}",  # --token ...
)
_PERSONAL = (
    # a home folder; on Windows its name may contain spaces
    (re.compile(r"(?i)(?<![\w/])(?:[a-z]:|/mnt/[a-z])?[\\/]{1,2}(?:home|users)[\\/]{1,2}"
                r"(?:[^\\/:*?\"<>|\n]{1,40}(?=[\\/])|[^\\/\s\"':]{1,40})"), "~"),
    (re.compile(r"/root(?=[/\s\"':]|$)"), "~"),
    (re.compile(r"\b(?:hf|sk|gh[a-z]|github_pat|glpat|wandb)[_-][A-Za-z0-9_-]{8,}"), "<token>"),
    (re.compile(r"(?<=://)[^/\s:@]{0,80}:[^/\s]{1,200}@"), "<user>:<password>@"),
    *((re.compile(f"({name}){_VALUE}"), r"\1<secret>") for name in _NAMES_OF_SECRETS),
    (re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,60}(?:\.[\w-]{1,60})+"), "<mail>"),
    (re.compile(r"\b(?!127\.|0\.0\.0\.0)(?:\d{1,3}\.){3}\d{1,3}(?=[:/\s)\"']|$)"), "<address>"),
)  # fmt: skip


def write_issue_report(thing: Any = None, *, machine: Machine | None = None) -> str:
    """Return a text to paste into an issue about an error or a log; takes what `explain` takes.

    Home folders, user and computer names, tokens, passwords and addresses are replaced. Read it before you publish it:
    only you know what else in a log is private.
    """
    thing = last_error() if thing is None else thing
    machine = machine or read_machine(quick=True)
    explanation = explain(thing, machine=machine)
    lines = read(thing).text.rstrip().splitlines() if thing is not None else []
    cut = [f"[... {len(lines) - _MAX_LINES} lines before]"] if len(lines) > _MAX_LINES else []
    causes = [f"{one.id} {one.title} ({one.certainty})" for one in explanation.causes] or [explanation.verdict]
    return remove_personal_data(
        "\n".join(
            [
                "### Error", "", fenced("\n".join([*cut, *(lines[-_MAX_LINES:] or [explanation.headline])])), "",
                "### Explained as", "", *(f"- {cause}" for cause in causes), "",
                "### Versions", "", *_bullets(_versions(machine)), "",
                "### Machine", "", *_bullets(_machine(machine)),
            ]
        )
    )  # fmt: skip


def remove_personal_data(text: str) -> str:
    r"""Return a text without home folders, names of user and computer, tokens, passwords and addresses.

    >>> remove_personal_data(r"C:\Users\ada\run.py, token=hf_abcdefghij, https://ada:secret@example.org")
    '~\\run.py, token=<token>, https://<user>:<password>@example.org'
    """
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home raises where a container's user has none)
    if len(home) > 1:
        text = text.replace(home, "~")
    for pattern, replacement in _PERSONAL:
        text = pattern.sub(replacement, text)
    for name in (_user(), platform.node()):
        if len(name) > 3:  # shorter names may be ordinary words
            text = re.sub(rf"\b{re.escape(name)}\b", "<name>", text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # Windows without the variables, or a container's user id without a name
        return ""


def _bullets(facts: "Iterator[str]") -> "Iterator[str]":
    try:
        for fact in facts:
            yield f"- {fact}"
    except UnreadError as error:
        yield f"- not read: {error}"


def _versions(machine: Machine) -> "Iterator[str]":
    python, installed = machine.python, machine.packages.installed
    yield f"Python {'.'.join(map(str, python.version))}, {python.bits} bits{', conda' * python.is_conda}"
    packages = [f"{name} {installed[name]}" for name in _PACKAGES if name in installed]
    yield ", ".join(packages) or "none of the course's packages"


def _machine(machine: Machine) -> "Iterator[str]":
    system, nvml = machine.platform, machine.nvml
    container = ", container" * bool(system.container)
    yield " ".join(filter(None, [system.kind, system.release, system.architecture])) + container
    yield f"driver {nvml.driver or 'not found'}" + (f" ({nvml.cause})" if nvml.cause else "")
    cards = [f"{card.name}, {size_text(card.total_bytes)}, capability {card.capability}" for card in nvml.usable]
    yield from cards or ["no card that NVIDIA's driver reports"]
    yield f"main memory {size_text(machine.memory.total_bytes)}"
