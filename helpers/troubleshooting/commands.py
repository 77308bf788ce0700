"""`explain` on a terminal, as a command of `python -m helpers`."""

import sys
from pathlib import Path

import click

from helpers.troubleshooting.explanation import explain as explain_thing


@click.command()
@click.argument("log", default="-", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
def explain(log: str) -> None:
    """Say what the error or the training in LOG comes from (a file, or - for what is piped in); exit 1 if unknown."""
    if log == "-":
        text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    else:
        text = Path(log).read_text(encoding="utf-8", errors="replace")
    explanation = explain_thing(text)
    click.echo(str(explanation))
    sys.exit(0 if explanation.causes else 1)
