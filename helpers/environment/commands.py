"""The doctor and the live monitor as commands of `python -m helpers`."""

from __future__ import annotations

import shutil
import sys
import time

import click

from helpers.environment.__main__ import main
from helpers.environment.live import Monitor, sample
from helpers.paths import COMMAND

_INTERVAL_SECONDS = 1.0  # between readings


# click passes all arguments to the argparse parser of `helpers.environment`, so that there is only one parser
@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def doctor(arguments: tuple[str, ...]) -> None:
    """Say what this machine is and what stops it from training. Exit code 1 if it cannot train."""
    sys.exit(main(list(arguments), program=f"{COMMAND} doctor"))


@click.command()
@click.option("--once", is_flag=True, help="Read once; the default if the output is not a terminal.")
def monitor(once: bool) -> None:
    """Show memory, load, power and temperature, until Ctrl-C. It also shows which processes use memory."""
    watch = Monitor(sample, interval_seconds=_INTERVAL_SECONDS, length=600)
    if once or not sys.stdout.isatty():
        click.echo(str(watch))
        return
    try:
        while True:
            click.clear()
            click.echo(watch.text(width=max(10, shutil.get_terminal_size().columns - 40)))
            time.sleep(_INTERVAL_SECONDS)
            watch.update()
    except KeyboardInterrupt:
        click.echo()
