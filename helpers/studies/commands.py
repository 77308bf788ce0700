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
@click.option("--retry-failed", is_flag=True, help="Run failed trials again, their cause being mended.")
@click.pass_context
def sweep(ctx: click.Context, study: str, workers: int, gpu: str | None, dry_run: bool, retry_failed: bool) -> None:
    """Run the STUDY of a file, or a shipped one such as `rates`: every trial a run, one table at the end.

    The same command goes on after an interruption, and joins the study from a second machine or card. Exit code 1 when
    trials are left, or none has a figure.
    """
    from helpers.studies.study_file import find_study, read_study
    from helpers.studies.study_plan import forecast
    from helpers.studies.worker import told_full_disk

    file = find_study(study)
    asked = read_study(file)
    try:
        before, wrong = _look(asked)
        n_left = None if before is None else before.n_left_of(len(asked.points), with_failed=retry_failed)
        planned = forecast(asked, _card(gpu), workers=workers, n_left=n_left)
        click.echo(planned)
        if before is not None:
            click.echo(f"{'started':<10} {before.counts}; the file asks for the same study")
        _refuse(planned.refusals + wrong)  # before anything is written
        if dry_run:
            return
        is_settled = _run(asked, file, workers=workers, retry_failed=retry_failed)
    except OSError as error:
        click.secho(told_full_disk(error), fg="yellow", err=True)
        is_settled = False
    ctx.exit(0 if is_settled else 1)


def _look(study: Any) -> tuple[Any, list[str]]:
    """Return how a study stands that was started before, None where it was not, and why it cannot go on."""
    from helpers.studies.queue import started_study
    from helpers.studies.supervise import standing

    try:
        opened = started_study(study)
    except SettingsError as error:
        return None, [str(error)]
    return (standing(study, opened) if opened is not None else None), []


def _run(study: Any, file: Path, *, workers: int, retry_failed: bool) -> bool:
    """Run a study and tell what came of it; return whether it is settled, with a figure at least."""
    from helpers.studies.queue import open_study
    from helpers.studies.queue import retry_failed as queue_failed
    from helpers.studies.supervise import standing, supervise

    opened = open_study(study)
    if retry_failed:
        queue_failed(study, opened)
    with _screen(study) as show:
        reasons = supervise(study, file, opened, workers=workers, show=show)
    for reason in reasons:
        click.secho(reason, fg="yellow", err=True)
    _tell_result(study.study, study.folder)
    ended = standing(study, opened)
    for sentence in _endings(ended):
        click.secho(sentence, fg="yellow", err=True)
    return not ended.n_left and ended.best is not None


def _endings(standing: Any) -> Iterator[str]:
    """Yield what the table of a study does not tell."""
    from helpers.studies.supervise import describe

    if not standing.n_left and standing.best is None:
        yield (
            f"No trial has a figure ({standing.counts}): the errors stand in "
            f"{standing.study.folder / '<trial>' / 'trial.log'}. Mend their cause, then `sweep --retry-failed`."
        )
    if standing.elsewhere:
        host = standing.best.user_attrs.get("worker", "").partition(":")[0]
        yield (
            f"{len(standing.elsewhere)} of {standing.count('done')} finished trials lie on other machines, and not in "
            f"this table; the best of all is {describe(standing.best, standing.study)} on {host}."
        )


def _card(gpu: str | None) -> Any:
    """Return the named card, else this machine's, else None."""
    from helpers.training.cards import card_of_this_machine, find_card

    return card_of_this_machine() if gpu is None else find_card(gpu)


def _refuse(sentences: list[str]) -> None:
    if sentences:
        raise SettingsError("\n".join(sentences))


@contextlib.contextmanager
def _screen(study: Any) -> Iterator[Callable[[Any], None]]:
    """Yield what shows a standing: one live screen in a terminal, a line for each trial that ends elsewhere."""
    from helpers.studies.screen import Lines, draw

    if not sys.stdout.isatty():
        yield Lines(click.echo)
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        yield lambda standing: live.update(draw(standing), refresh=True)


def _tell_result(study: str, folder: Path) -> None:
    """Print the table of a study and leave it as a page and as CSV in its folder."""
    from helpers.studies.comparison import compare as compare_runs
    from helpers.studies.comparison_page import write_page

    try:
        table = compare_runs(study)
        click.echo(f"\n{table}")
        (folder / "comparison.csv").write_text(table.to_csv(), encoding="utf-8")
        write_page(table, folder / "comparison.html")
        click.echo(f"Table and pictures: {folder / 'comparison.html'}")
    except SettingsError:
        return  # nothing has begun
    except Exception as error:  # noqa: BLE001 - of a full disk or a damaged run; a night's trials end in a sentence
        click.secho(
            f"The trials are kept, but their table is not whole ({type(error).__name__}: {error}): "
            f"`python -m helpers compare {study}` makes it again.",
            fg="yellow",
            err=True,
        )


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
    from helpers.studies.comparison import compare as compare_runs
    from helpers.studies.comparison import promote as promote_run
    from helpers.studies.comparison_page import write_page

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
