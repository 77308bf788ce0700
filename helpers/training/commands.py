"""The commands `train`, `plan` and `calibrate` of `python -m helpers`."""

from collections.abc import Callable
from typing import Any

import click

from helpers.display import announce
from helpers.settings import SettingsError, TrainingSettings, check_values, preset_names


def run_options(command: Callable) -> Callable:
    """Add the options that `run`, `train` and `plan` share: preset, run name, settings."""
    for option in (
        click.option(
            "-p", "--parameter", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="Set one setting."
        ),
        click.option("--run", "run_name", metavar="NAME", help="Name of the run's folder; default: the preset's."),
        click.option("--preset", default="pocket", show_default=True, help=f"One of {', '.join(preset_names())}."),
    ):
        command = option(command)
    return command


def settings_from_options(run_name: str | None, parameters: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Return the checked settings from these options."""
    values = dict(parameters)
    if run_name is not None and values.setdefault("run", run_name) != run_name:
        raise SettingsError(f"The run has two names, {run_name!r} and {values['run']!r}: leave one of them out.")
    return check_values(values)


@click.command()
@run_options
def train(preset: str, run_name: str | None, parameters: tuple[tuple[str, str], ...]) -> None:
    """Train one run without a notebook. For several cards: `accelerate launch -m helpers train`.

    With torchrun, name the run with `-p run NAME`: torchrun interprets `--run` as its own option.
    """
    from helpers.data import refuse_missing
    from helpers.training import is_first_process

    settings = TrainingSettings.from_preset(preset, **settings_from_options(run_name, parameters))
    refuse_missing(settings.model_dump())
    if is_first_process():
        announce(f"Preparing run {settings.run} ...")
    # Only now, because this imports torch and transformers: a mistyped setting should be reported at once.
    from helpers.training import TrainingBrokenError, fine_tune, leave_process_group

    try:
        finished = fine_tune(settings, progress=True)
    except TrainingBrokenError as error:
        raise click.ClickException(str(error)) from None
    if is_first_process():  # only one of many processes prints
        click.echo(finished)
    leave_process_group()


@click.command()
@run_options
@click.option(
    "--gpu",
    metavar="NAME",
    help="A card such as 'RTX 4090', or 'processor'; default: this machine's card, without one an RTX 4070 Ti.",
)
@click.pass_context
def plan(
    ctx: click.Context, preset: str, run_name: str | None, parameters: tuple[tuple[str, str], ...], gpu: str | None
) -> None:
    """Predict a run's peak memory, time and disk, without a GPU. Exit code 1 if it does not fit."""
    from helpers.data import refuse_missing
    from helpers.training import DEFAULT_CARD, card_of_this_machine, find_card, plan_run

    settings = TrainingSettings.from_preset(preset, **settings_from_options(run_name, parameters))
    refuse_missing(settings.model_dump())
    card = find_card(gpu) if gpu is not None else card_of_this_machine() or find_card(DEFAULT_CARD)
    planned = plan_run(settings, card=card)
    click.echo(planned)
    ctx.exit(0 if planned.fits else 1)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print all measurements as JSON, to keep or to post.")
@click.option(
    "--seconds", default=60.0, show_default=True, type=click.FloatRange(0), help="Start no further run after this time."
)
def calibrate(as_json: bool, seconds: float) -> None:
    """Measure short training runs here, for plan, panel and sweep."""
    announce(f"Measuring short training runs, for about {max(10, seconds):.0f} s ...")
    from helpers.training import calibrate as measure

    calibration = measure(budget_seconds=seconds)
    click.echo(calibration.model_dump_json(indent=1) if as_json else calibration)
