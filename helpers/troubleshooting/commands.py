"""`explain` as a command of `python -m helpers`."""

import sys
from pathlib import Path

import click

from helpers.display import announce, did_you_mean
from helpers.paths import similar_paths
from helpers.troubleshooting.explanation import explain as explain_thing
from helpers.troubleshooting.issue_report import write_issue_report
from helpers.troubleshooting.reading import decode


@click.command()
@click.argument("log", default="-", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--report", is_flag=True, help="Print a text to paste into an issue: error, versions, machine.")
def explain(log: str, report: bool) -> None:
    """Explain the error, or the failed training, in LOG. Exit code 1 if the cause is unknown.

    LOG is a file, such as a log or an executed notebook. Without it, pipe the text in or paste it.
    """
    if log != "-" and not Path(log).exists():
        raise click.BadParameter(
            f"there is no file {log!r}{did_you_mean(log, similar_paths(log))} Name a log or a notebook; to paste an "
            "error instead, leave out LOG.",
            param_hint="LOG",
        )
    if log == "-" and sys.stdin.isatty():
        click.echo("Paste the error, then press Enter and Ctrl-D (in PowerShell Ctrl-Z and Enter):", err=True)
    elif log != "-":
        announce(f"Reading {log} ...")
    thing = decode(sys.stdin.buffer.read()) if log == "-" else Path(log)
    if report:
        click.echo(write_issue_report(thing))
        return
    explanation = explain_thing(thing)
    click.echo(str(explanation))
    sys.exit(0 if explanation.causes else 1)
