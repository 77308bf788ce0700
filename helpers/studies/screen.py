"""The live screen of a sweep: trials done, running, failed, the best so far, the time left."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from helpers.studies.queue import state_of, was_broken_off
from helpers.studies.supervise import Standing, describe

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST_FAILED = 5  # that are shown


def headline(standing: Standing) -> str:
    """Return how a study stands, in one line."""
    return f"{standing.counts}; time left: {_left(standing)}"


def _left(standing: Standing) -> str:
    if not standing.n_left:
        return "none"
    if standing.seconds_left is None:
        return "known after the first trial"
    minutes = round(standing.seconds_left / 60)
    return f"about {minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"about {max(1, minutes)} min"


def draw(standing: Standing) -> "RenderableType":
    """Return the screen."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    settled = len(standing.trials) - standing.n_left
    lines: list[Any] = [
        Text(f"study {standing.study.study}", style="bold"),
        ProgressBar(total=max(1, len(standing.trials)), completed=settled, width=60),
        Text(headline(standing)),
    ]
    if standing.best is not None:
        lines.append(Text(f"best so far  {describe(standing.best, standing.study)}", style="green"))
    lines += [Text(describe(trial, standing.study)) for trial in standing.trials if state_of(trial) == "running"]
    failed = [trial for trial in standing.trials if state_of(trial) == "failed"]
    lines += [Text(describe(trial, standing.study), style="red") for trial in failed[-_MOST_FAILED:]]
    lines.append(Text(f"logs: {standing.study.folder / '<trial>' / 'trial.log'}", style="dim"))
    return Group(*lines)


class Lines:
    """Tells a standing where there is no terminal: a line for each trial that has ended since the last one."""

    def __init__(self, write: Callable[[str], Any]) -> None:
        self._write, self._told = write, None

    def __call__(self, standing: Standing) -> None:
        """Write what is new."""
        finished = [trial for trial in standing.trials if trial.state.is_finished()]
        ended = {trial.number: trial for trial in finished if not was_broken_off(trial)}
        if self._told is None:  # what ended before this command
            self._told = set(ended)
        for number in sorted(set(ended) - self._told):
            self._write(f"{describe(ended[number], standing.study)}; {headline(standing)}")
        self._told |= set(ended)
