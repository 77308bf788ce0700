"""The doctor and the live monitor as commands of `python -m helpers`."""

import json
import os
import shutil
import sys
import time

import click

from helpers.environment import diagnose
from helpers.environment.live import Monitor, sample, text


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the diagnosis as JSON.")
@click.option("--quick", is_flag=True, help="Do not import torch: a second instead of a few.")
def doctor(as_json: bool, quick: bool) -> None:
    """Say what this machine is and what is in the way; exit 1 when training cannot go on."""
    diagnosis = diagnose(quick=quick)
    if as_json:
        click.echo(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        _echo(diagnosis.table(color=not os.environ.get("NO_COLOR")))  # click takes colours out where none are wanted
    sys.exit(diagnosis.exit_code)


@click.command()
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds a reading.")
@click.option("--seconds", type=click.FloatRange(0), help="Stop after so long; left out: at Ctrl-C.")
@click.option("--once", is_flag=True, help="Read once; so it is where the output is not a terminal.")
def monitor(interval: float, seconds: "float | None", once: bool) -> None:
    """Show memory, load, power, heat and who holds memory, until Ctrl-C."""
    shown = Monitor(sample, interval_seconds=interval, length=600)
    if once or not sys.stdout.isatty():
        _echo(str(shown))
        return
    ends = None if seconds is None else time.monotonic() + seconds
    try:
        while ends is None or time.monotonic() < ends:
            click.clear()
            _echo(text(shown.history, width=max(10, shutil.get_terminal_size().columns - 40)))
            time.sleep(interval if ends is None else max(0, min(interval, ends - time.monotonic())))
            shown.update()
    except KeyboardInterrupt:
        click.echo()


def _echo(message: str) -> None:
    """Print; an output that lacks a sign, as a file of Windows' code page does, shows another in its place."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    click.echo(message)
