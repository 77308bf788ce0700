"""Read an exception, a traceback, a log, a notebook or rows into a `Reading`: lines, errors, rows of numbers.

What people paste is rarely what the program printed: this module removes quotes, time stamps, prefixes of containers
and distributed runs, and colours, and decodes other encodings. `log_rows` finds the numbers that training logged.
"""

import codecs
import json
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from helpers.display import printable
from helpers.troubleshooting.log_rows import keep_numbers, read_rows

# Of a longer text, read the two ends and, from the middle, lines with one of these words and the lines after them: logs
# of 50 MB are mostly progress bars.
_MAX_CHARACTERS, _MAX_LINE, _MAX_MESSAGE_LINES = 2_000_000, 4_000, 40
_TROUBLE = re.compile(r"error: |exception: |traceback \(|fatal|killed|out of memory|nvrm: | nan|assert")
_MAX_REPEATS, _LINES_AFTER_TROUBLE, _MAX_ERRORS = 20, 5, 200
_DROP_DIGITS = str.maketrans("", "", "0123456789")

# What other tools put before a line that a program printed; several of these may follow each other.
_TIME = r"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
_PREFIX = re.compile(
    r"(?:> ?(?=[^>])|>$"  # a quotation; >>> is Python's prompt
    r"|\[(?:rank|default)?\d{1,4}\]: ?"  # torchrun
    r"|[A-Za-z][\w.-]{0,40} {0,20}\| (?=[^|]*$)"  # docker compose
    r"|\[?(?:stderr|stdout)\b\]?[:/ ] ?"
    rf"|\[?\d{{4}}[-/]\d\d[-/]\d\d[T ]{_TIME}(?:Z|[+-]\d\d:?\d\d)?\]?[:, -]{{0,3}}"
    rf"|\[?{_TIME}\]?[: ] ?"
    rf"|[IWEF]\d{{4}} {_TIME} +\d{{1,20}} [^\s\]]{{1,200}}\] ?"  # glog, torchrun's own log
    rf"|[A-Z][a-z]{{2}} {{1,2}}\d{{1,2}} {_TIME} "  # syslog
    r"| {2,60}(?:\| |\+ Exception Group (?=Traceback))"  # Python, in an exception group
    r"|```\w*|\*\*)"
)
_QUOTED = re.compile(r"^\s*`([^`]{1,4000})`\s*$")
_TRACEBACK = "Traceback (most recent call last)"
_KINDS = r"Error|Exception(?:Group)?|Interrupt|Timeout|NoSuchKernel|Exit|Iteration|CompilerFailed|OutOfResources"
_ERROR = re.compile(
    rf"^(?:E  +)?(?P<kind>(?:[A-Za-z_][\w.]*\.)?_?[A-Z]\w*(?:{_KINDS})|Exception(?:Group)?(?=: ))"
    r"(?:: ?(?P<message>.*))?$"
)
# after a traceback any name is that of an error, even if it does not end in Error
_AFTER_TRACEBACK = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*)(?:: ?(?P<message>.*))?$")
# a tool that reports an error in its log: "ERROR: ...", "train.py: error: ...", "E: ...", "x - ERROR - ..."
_LOGGED = re.compile(
    r"(?:(?:^|(?<=[\s:|/\[(-]))(?P<level>ERROR|CRITICAL|FATAL)\b|^(?P<own>E|Error|Fatal)(?=:)"
    r"|(?:^|(?<=: ))(?P<tool>error|fatal(?: error)?)(?=:))[\]):|/ -]{0,6}(?P<message>\S.*)"
)
_MAX_LOG_PREFIX = 160
_END_OF_MESSAGE = re.compile(r"^(?:Traceback |During handling|The above exception| *\+-[+-]|\s*$)")
# People write headings, lists and sentences with "I"; programs at most write "we couldn't connect".
_HUMAN_WRITING = re.compile(r"^#{1,6} +[A-Z]|\b(?:I|I'm|I've|[Mm]y) [a-z]+|^[-*] +[A-Z`]|\]\(https?://")
_SENTENCE = re.compile(r"^[^\w`]{0,4}(?:\w+[.)] )?[A-Z`][^:\[\]{}=|]{0,30} [a-z]")


@dataclass(frozen=True)
class Reading:
    """A text that `explain` judges."""

    text: str  # all of it (of a long text the parts that matter), without control characters
    lines: tuple[str, ...] = ()  # as the program printed them
    errors: tuple[str, ...] = ()  # each as `Type: message`, in the order they were raised or printed
    rows: "tuple[dict[str, float], ...]" = ()  # the training log, one dictionary per step
    is_prose: bool = False  # written by a person; `lines` then lacks the sentences

    @cached_property
    def lower_text(self) -> str:
        """The text in lower case, for a quick search before a pattern is tried."""
        return "\n".join([self.text, *self.lines]).lower()

    @cached_property
    def distinct_lines(self) -> tuple[tuple[str, str], ...]:
        """The lines to search, as (line, lower case); of lines that differ only in numbers, the first twenty."""
        is_rare = _rarity_test()
        return tuple((line, line.lower()) for line in self.lines if is_rare(line))

    @cached_property
    def last_run(self) -> "list[dict[str, float]]":
        """The rows of the last run; a new run begins where the epoch falls back towards 0."""
        begin = 0
        for number, (before, now) in enumerate(pairwise(row.get("epoch") for row in self.rows), 1):
            if before is not None and now is not None and now < 0.2 * before and "loss" in self.rows[number]:
                begin = number
        return list(self.rows[begin:])

    @cached_property
    def lower_errors(self) -> tuple[tuple[str, str], ...]:
        """The errors as (error, lower case), the last one first."""
        return tuple((error, error.lower()) for error in reversed(self.errors))


def _rarity_test() -> Callable[[str], bool]:
    """Return a function that says whether fewer than twenty lines so far equal a line, apart from numbers."""
    seen = Counter[str]()

    def is_rare(line: str) -> bool:
        key = line.translate(_DROP_DIGITS)
        seen[key] += 1
        return seen[key] <= _MAX_REPEATS

    return is_rare


def read(thing: Any) -> Reading:
    """Read an exception, a text, a file (a `Path`, such as a log or an executed notebook) or the rows of a log.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(thing, BaseException):  # as text only: a kept traceback would keep memory alive
        return read_text("".join(traceback.format_exception(thing)))
    if isinstance(thing, Path):
        return read_text(decode(thing.read_bytes()))
    if isinstance(thing, str):
        return read_text(thing)
    if isinstance(thing, Iterable):
        rows = list(thing)
        if all(isinstance(row, Mapping) for row in rows):
            warnings = tuple(clean(str(row["warning"])) for row in rows if "warning" in row)
            return Reading("\n".join(warnings), warnings, rows=tuple(map(keep_numbers, rows)))
    raise TypeError(
        f"explain() was given {type(thing).__name__}: give it an exception, a text, a Path to a log, or rows of a log."
    )


def decode(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark, which PowerShell's `>` writes."""
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf_16 else "utf-8-sig", errors="replace")


def read_text(text: str) -> Reading:
    """Read a traceback, a log or an executed notebook; each update of a progress bar becomes a separate line."""
    text = text.removeprefix("\ufeff")
    content = _json(text)
    if isinstance(content, dict) and isinstance(content.get("cells"), list):
        text, content = _notebook_errors(content), None
    text = clean(_shorten(text))
    printed = [_strip_prefixes(line) for line in text.split("\n")]
    lines = [line[:_MAX_LINE] for entry in printed for line in entry.split("\n")]
    errors = _find_errors(lines)
    is_prose = not errors and sum(bool(_HUMAN_WRITING.search(line)) for line in lines) > len(lines) / 20
    if is_prose:
        lines = [line for line in lines if not _SENTENCE.search(line)]
    rows = read_rows(content, lines)
    return Reading(text, tuple(lines), errors, rows, is_prose)


def clean(text: str) -> str:
    r"""Remove what a terminal would interpret (colours, bells), and turn carriage returns into line breaks.

    >>> clean("a\x1b[31mb\x07\rc")
    'ab \nc'
    """
    return printable(text, keep="\n\t\r").replace("\r\n", "\n").replace("\r", "\n")


def _shorten(text: str) -> str:
    """Return a long text without its middle, except for lines there that look like trouble."""
    if len(text) <= _MAX_CHARACTERS:
        return text
    end = _MAX_CHARACTERS // 4  # characters for each end, and for the middle
    kept, is_rare, n_following, n_left = list[str](), _rarity_test(), 0, end
    middle = text[end:-end].replace("\r", "\n")
    for line, lower in zip(middle.split("\n"), middle.lower().split("\n"), strict=True):
        if _TROUBLE.search(lower, 0, _MAX_LINE) and is_rare(line[:80]):
            n_following = 1 + _LINES_AFTER_TROUBLE
        if n_following:
            kept.append(line[:_MAX_LINE])
            n_following -= 1
            n_left -= len(kept[-1]) + 1
        if n_left < 0:
            break
    return "\n".join([text[:end], "\n".join(kept)[:end], text[-end:]])


def _strip_prefixes(line: str) -> str:
    """Return what the program printed, without prefixes; for a line of JSON, its message."""
    stripped = line.lstrip()
    if stripped.startswith("{") and stripped.rstrip().endswith("}") and isinstance(record := _json(stripped), dict):
        message = next((record[key] for key in ("message", "msg", "log") if isinstance(record.get(key), str)), None)
        if message is not None:
            return "\n".join(filter(None, [message, str(record.get("exc_info") or record.get("exception") or "")]))
    for _ in range(6):
        match = _PREFIX.match(line)
        if not match:
            break
        line = line[match.end() :]
    if stripped.startswith("**"):
        return line.rstrip("* ")
    return _QUOTED.sub(r"\1", line)


def _json(text: str) -> Any:
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _notebook_errors(notebook: "dict[str, Any]") -> str:
    """Return the tracebacks in a notebook's outputs; its prose, its code and other output are not a log."""
    texts = []
    for output in (output for cell in _objects(notebook["cells"]) for output in _objects(cell.get("outputs"))):
        if output.get("output_type") == "error":
            texts.append(_join(output.get("traceback"), "\n") or f"{output.get('ename')}: {output.get('evalue')}")
        elif _TRACEBACK in (printed := _join(output.get("text"))):  # as from `!python train.py`
            texts.append(printed)
    return "\n\n".join(texts)


def _join(text: Any, separator: str = "") -> str:
    """Return a text that a notebook stores as one string or as a list of lines."""
    return separator.join(map(str, text)) if isinstance(text, list) else str(text or "")


def _objects(values: Any) -> "list[dict[str, Any]]":
    """Return the objects in a JSON list; none for any other value, because other JSON may have cells too."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _find_errors(lines: "list[str]") -> tuple[str, ...]:
    """Return the errors that were raised or logged; a whole traceback may be indented."""
    found, indent = [], None  # the indentation of the traceback that has begun
    for number, line in enumerate(lines):
        text = line.lstrip()
        if text.startswith(_TRACEBACK):
            indent = len(line) - len(text)
        elif text and (indent is None or len(line) - len(text) <= indent):
            match = (_AFTER_TRACEBACK.match(text) if indent is not None else None) or _ERROR.match(text)
            indent = None
            if match:
                found.append((f"{match['kind']}: ", match["message"], number))
            elif (match := _LOGGED.search(text)) and match.start() < _MAX_LOG_PREFIX:
                found.append(("" if _ERROR.match(match["message"]) else "error: ", match["message"], number))
    is_rare = _rarity_test()
    found = [one for one in reversed(found) if is_rare(f"{one[0]}{one[1]}")][::-1]
    if len(found) > _MAX_ERRORS:  # the first may have caused the others, and the last ended the program
        found = found[: _MAX_ERRORS // 2] + found[-_MAX_ERRORS // 2 :]
    return tuple(
        (kind + _read_message(message, lines[number + 1 : number + _MAX_MESSAGE_LINES]))[:_MAX_LINE]
        for kind, message, number in found
    )


def _read_message(first: str | None, following: "list[str]") -> str:
    """Return the message of an error, which may continue on the next lines."""
    message = [first or ""]
    for line in following:
        if _END_OF_MESSAGE.match(line) or _ERROR.match(line):
            break
        message.append(line)
    return "\n".join(message)
