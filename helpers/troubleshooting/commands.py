"""`explain` on a terminal, as a command of `python -m helpers`; and in a notebook, as the magic `%explain`."""

import sys
from pathlib import Path
from typing import Any

import click

from helpers.troubleshooting.explanation import Explanation
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


def load_ipython_extension(shell: Any) -> None:
    """Add `%explain` to IPython; `%load_ext helpers.troubleshooting` calls this.

    `%explain` explains the last error, `%explain name` an exception or a text that you kept, and `%%explain` the
    traceback or log that is pasted into the cell.
    """

    def magic(line: str, cell: str | None = None) -> Explanation:
        if cell is not None:
            return explain_thing(cell)
        return explain_thing(shell.ev(line) if line.strip() else None)

    shell.register_magic_function(magic, magic_kind="line_cell", magic_name="explain")
