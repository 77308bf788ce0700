"""Check an answer and store the verdict in the run's folder, from which `progress` reads it."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from filelock import FileLock

from helpers.display import PlainTextMixin, did_you_mean, html_table
from helpers.exercises.checks import CHECKS, Check, Hint, NotDoneError
from helpers.files import read_json_or_empty, write_html_page, write_json
from helpers.settings import SettingsError, run_folder

_MARKS = {"right": "\u2713", "not yet": "\u2717", "not done yet": "\u2026"}


@dataclass(frozen=True)
class Verdict(PlainTextMixin):
    """The result of a check: `status` is 'right', 'not yet' or 'not done yet'."""

    status: str
    message: str

    def _repr_html_(self) -> str:
        return f"<p><b>{_MARKS[self.status]} {self.status}.</b> {escape(self.message)}</p>"


@dataclass(frozen=True)
class Progress(PlainTextMixin):
    """The progress of a run: `statuses` has the status of each exercise, in the order of the course."""

    run: str
    statuses: dict[str, str]

    def __str__(self) -> str:
        """Return the number of solved exercises as a sentence, and a second one if no answer has been checked yet."""
        n_right = list(self.statuses.values()).count("right")
        text = f"{n_right} of {len(self.statuses)} exercises are solved."
        if set(self.statuses.values()) != {"not done yet"}:
            return text
        runs = [path.parent.name for path in run_folder(self.run).parent.glob("*/exercises.json")]
        return f"{text} No answer has been checked in run {self.run!r}{did_you_mean(self.run, runs)}"

    @property
    def _table(self) -> str:
        rows = [(_MARKS[status], name, CHECKS[name][1], status) for name, status in self.statuses.items()]
        return html_table(["", "exercise", "task", "status"], rows)

    def _repr_html_(self) -> str:
        return f"<details><summary>{self}</summary>{self._table}</details>"

    def write_page(self) -> Path:
        """Write the table as a printable page, `exercises.html` in the run's folder; return its path."""
        path = run_folder(self.run) / "exercises.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_html_page(path, title=f"Exercises: {self.run}", body=f"<p>{self}</p>{self._table}")
        return path


def check(name: str, answer: Any, *, run: str = "pocket") -> Verdict:
    """Check the answer to an exercise, a value or a function; raise `SettingsError` if no exercise has that name.

    An answer of None, or a function that returns None, is 'not done yet'. The verdict is stored in the run's folder for
    `progress`; an exercise that was solved once stays solved.
    """
    if name not in CHECKS:
        raise SettingsError(f"There is no exercise {name!r}{did_you_mean(str(name), CHECKS)}")
    verdict = _verdict(CHECKS[name][0], answer)
    if verdict.status != "not done yet":
        path = _record_path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(".exercises.lock")):  # a second notebook may check at the same time
            before = _read_statuses(run)
            if before.get(name) not in ("right", verdict.status):
                write_json(path, before | {name: verdict.status})
    return verdict


def _verdict(examine: Check, answer: Any) -> Verdict:
    not_done = Verdict("not done yet", "Write your answer in the cell above. A function must return its result.")
    if answer is None:
        return not_done
    try:
        examine(answer)
    except NotDoneError:
        return not_done
    except Hint as hint:
        return Verdict("not yet", str(hint))
    except Exception as error:  # noqa: BLE001 (a learner's code may raise anything)
        return Verdict("not yet", f"Your answer raises {type(error).__name__}: {error}")
    return Verdict("right", "On to the next one.")


def progress(run: str = "pocket") -> Progress:
    """Return the progress in the exercises of all notebooks, as stored in a run's folder."""
    statuses = _read_statuses(run)
    return Progress(run, {name: statuses.get(name, "not done yet") for name in CHECKS})


def _record_path(run: str) -> Path:
    return run_folder(run) / "exercises.json"


def _read_statuses(run: str) -> dict[str, str]:
    """Return the stored statuses; none if the file is missing or damaged."""
    statuses = read_json_or_empty(_record_path(run))
    return {name: status for name, status in statuses.items() if status in ("right", "not yet")}
