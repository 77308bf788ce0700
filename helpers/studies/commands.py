"""The commands `sweep` and `compare` of `python -m helpers`."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from helpers.display import announce, printable
from helpers.files import write_atomically
from helpers.settings import SettingsError
from helpers.studies.comparability import METRICS

# Modules are imported where they are used so that `python -m helpers --help` loads neither Optuna nor PyTorch.


@click.command()
@click.argument("study")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes on this machine.")
@click.option("--gpu", metavar="NAME", help="A card such as 'RTX 4070 Ti', or 'processor'; default: this machine's.")
@click.option("--dry-run", is_flag=True, help="Show what the study will do, then stop.")
@click.option("--retry-failed", is_flag=True, help="Run failed trials again after fixing their cause.")
@click.pass_context
def sweep(ctx: click.Context, study: str, workers: int, gpu: str | None, dry_run: bool, retry_failed: bool) -> None:
    """Run a STUDY: a file, or a shipped study such as `rates`. Each trial is a run; a final table compares them.

    The same command resumes an interrupted study, or joins it from a second machine or card. Exit code 1 if trials are
    left or no trial has a metric.
    """
    announce(f"Planning study {study} ...")
    from helpers.studies.queue import started_study
    from helpers.studies.study_file import find_study, read_study
    from helpers.studies.study_plan import plan_study
    from helpers.studies.supervision import Progress
    from helpers.training.devices import card_of_this_machine, find_card

    file = find_study(study)
    declared = read_study(file)
    started = started_study(declared)
    progress = None if started is None else Progress(declared, started)
    n_left = None if progress is None else progress.n_left_of(len(declared.points), with_failed=retry_failed)
    card = card_of_this_machine() if gpu is None else find_card(gpu)
    plan = plan_study(declared, card, workers=workers, n_left=n_left)
    click.echo(plan)
    if progress is not None:
        click.echo(f"{'started':<10} {progress.counts}; the file asks for the same study")
    if plan.refusals:  # before anything is written
        raise SettingsError("\n".join(plan.refusals))
    if dry_run:
        return
    is_settled = _run(declared, file, workers=workers, retry_failed=retry_failed)
    ctx.exit(0 if is_settled else 1)


def _run(study: Any, file: Path, *, workers: int, retry_failed: bool) -> bool:
    """Run a study and show its result; return whether it is settled, with at least one metric."""
    from helpers.studies.queue import open_study
    from helpers.studies.queue import retry_failed as queue_failed
    from helpers.studies.supervision import Progress, supervise

    optuna_study = open_study(study)
    if retry_failed:
        queue_failed(study, optuna_study)
    with _progress_view() as show:
        reasons = supervise(study, file, optuna_study, workers=workers, show=show)
    for reason in reasons:
        click.secho(printable(reason), fg="yellow", err=True)
    progress = Progress(study, optuna_study)
    if any(study.folder.glob("trial-*/trial.json")):
        _show_table(progress)
    if not progress.n_left and progress.best is None:
        click.secho(
            f"No trial has a metric ({progress.counts}): the errors are in {study.folder / '<trial>' / 'trial.log'}. "
            "Fix their cause, then `sweep --retry-failed`.",
            fg="yellow",
            err=True,
        )
    return not progress.n_left and progress.best is not None


@contextlib.contextmanager
def _progress_view() -> Iterator[Callable[[Any], None]]:
    """Yield a function that shows progress: a live screen in a terminal, otherwise one line per ended trial."""
    from helpers.studies.supervision import EndedTrials, draw

    if not sys.stdout.isatty():
        yield EndedTrials(click.echo)
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        yield lambda progress: live.update(draw(progress), refresh=True)


def _show_table(progress: Any) -> None:
    """Print the table of a study, and write it to the study's folder as a page and as CSV."""
    from helpers.studies.comparison import compare as compare_runs
    from helpers.studies.comparison_page import write_page
    from helpers.studies.supervision import describe

    study = progress.study
    table = compare_runs(study.study)
    click.echo(f"\n{table}")
    write_atomically(study.folder / "comparison.csv", table.to_csv())  # replaces a link instead of following it
    write_page(table, study.folder / "comparison.html")
    click.echo(f"Table and pictures: {study.folder / 'comparison.html'}")
    n_done = len(progress.of_state("done"))
    n_elsewhere = n_done - sum(run.state == "done" for run in table.runs)
    if n_elsewhere > 0:
        host = progress.best.user_attrs.get("worker", "").partition(":")[0]
        remark = (
            f"{n_elsewhere} of {n_done} finished trials are on other machines, and not in this table; the best of all "
            f"is {describe(progress.best, study)} on {host}."
        )
        click.secho(printable(remark), fg="yellow", err=True)


@click.command()
@click.argument("runs", nargs=-1)
@click.option("--by", type=click.Choice(METRICS), help="Metric to rank by.")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the table as CSV.")
@click.option("--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), help="Write table and pictures.")
@click.option("--promote", metavar="NAME", help="Copy the best trial to a run with this name.")
def compare(
    runs: tuple[str, ...], by: str | None, csv_file: Path | None, html_file: Path | None, promote: str | None
) -> None:
    """Show RUNS side by side. Name runs, studies (all their trials) or trials such as rates/trial-003; default: all."""
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
            raise SettingsError(f"No finished run has a value of {table.by} to promote: try another --by.")
        if len(table.best) > 1:
            raise SettingsError(
                f"There are {len(table.best)} best runs, one per text: name the one to promote, such as "
                f"`compare {table.runs[0].name} --promote {promote}`."
            )
        click.echo(f"{table.best[0].name} is now the run {promote}: {promote_run(table.best[0], promote)}")
