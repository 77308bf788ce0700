"""`sweep` and `compare` as commands of `python -m helpers`."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from helpers.settings import SettingsError


@click.command()
@click.argument("study")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes on this machine.")
@click.option("--gpu", metavar="NAME", help="Plan for a card such as 'RTX 4070 Ti'; this machine's when left out.")
@click.option("--dry-run", is_flag=True, help="Show what the study will do, and do nothing.")
@click.pass_context
def sweep(ctx: click.Context, study: str, workers: int, gpu: str | None, dry_run: bool) -> None:
    """Run the STUDY of a file, or a shipped one such as `rates`: every trial a run, one table at the end.

    The same command goes on after an interruption, and joins the study from a second machine or card. Exit code 1 when
    trials are left.
    """
    from helpers.sweep.forecast import forecast
    from helpers.sweep.queue import open_study
    from helpers.sweep.study_file import find_study, read_study
    from helpers.sweep.supervise import standing, supervise

    file = find_study(study)
    asked = read_study(file)
    first = forecast(asked, _card(gpu))
    if dry_run:
        click.echo(first)
        _refuse(first.refusals)
        return
    _refuse([sentence for sentence in first.refusals if first.too_large])  # before anything is written
    opened = open_study(asked)
    planned = forecast(asked, first.card, n_left=standing(asked, opened).n_left)
    click.echo(planned)
    _refuse(planned.refusals)
    with _screen(asked) as show:
        reasons = supervise(asked, file, opened, workers=workers, show=show)
    for reason in reasons:
        click.secho(reason, fg="yellow", err=True)
    _tell_result(asked.study, asked.folder)
    ctx.exit(1 if standing(asked, opened).n_left else 0)


def _card(gpu: str | None) -> Any:
    """Return the named card, else this machine's, else None."""
    from helpers.cards import card_of_this_machine, find_card

    return card_of_this_machine() if gpu is None else find_card(gpu)


def _refuse(sentences: list[str]) -> None:
    if sentences:
        raise SettingsError("\n".join(sentences))


@contextlib.contextmanager
def _screen(study: Any) -> Iterator[Callable[[Any], None]]:
    """Yield what shows a standing: one live screen in a terminal, a line for each trial that ends elsewhere."""
    from helpers.sweep.screen import Lines, draw

    if not sys.stdout.isatty():
        yield Lines(click.echo)
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        yield lambda standing: live.update(draw(standing), refresh=True)


def _tell_result(study: str, folder: Path) -> None:
    """Print the table of a study and leave it as a page and as CSV in its folder."""
    from helpers.comparison import compare as compare_runs
    from helpers.comparison_page import write_page

    try:
        table = compare_runs(study)
    except SettingsError:
        return  # nothing has begun
    click.echo(f"\n{table}")
    with contextlib.suppress(OSError):  # of a full disk the reason is told already
        (folder / "comparison.csv").write_text(table.to_csv(), encoding="utf-8")
        write_page(table, folder / "comparison.html")
        click.echo(f"Table and pictures: {folder / 'comparison.html'}")


@click.command()
@click.argument("runs", nargs=-1)
@click.option("--by", type=click.Choice(["bits_per_byte", "perplexity", "eval_loss"]), help="Figure that ranks.")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the table as CSV.")
@click.option("--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), help="Write table and pictures.")
@click.option("--promote", metavar="NAME", help="Make the best trial a run of its own, under this name.")
def compare(
    runs: tuple[str, ...], by: str | None, csv_file: Path | None, html_file: Path | None, promote: str | None
) -> None:
    """Lay RUNS side by side: runs, studies (all their trials) or single trials such as rates/trial-003; else all."""
    from helpers.comparison import compare as compare_runs
    from helpers.comparison import promote as promote_run
    from helpers.comparison_page import write_page

    table = compare_runs(*runs, by=by)
    click.echo(table)
    for file in filter(None, (csv_file, html_file)):
        file.parent.mkdir(parents=True, exist_ok=True)
    if csv_file is not None:
        csv_file.write_text(table.to_csv(), encoding="utf-8")
    if html_file is not None:
        write_page(table, html_file)
    if promote is not None:
        if not table.best:
            raise SettingsError(f"No finished run has a figure {table.by}: there is none to promote. Try another --by.")
        if len(table.best) > 1:
            raise SettingsError(
                f"There is not one best run but {len(table.best)}: name the one to promote, such as "
                f"`compare {table.runs[0].name} --promote {promote}`."
            )
        click.echo(f"{table.best[0].name} is now the run {promote}: {promote_run(table.best[0], promote)}")
