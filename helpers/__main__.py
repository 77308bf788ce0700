"""The command line, `python -m helpers ...`.

Its commands are run, train, plan, calibrate, settings, sweep, compare, export, demo, share, doctor, explain and
monitor. The tasks `course`, `test`, `lab` and others work on a fresh clone; see `helpers.environment.tasks`.
"""

import signal
import sys

from helpers.environment import tasks

if __name__ == "__main__":  # what follows imports packages that may have to be installed first
    tasks.start(sys.argv[1:])
    on_interrupt = signal.getsignal(signal.SIGINT)
    if on_interrupt is signal.default_int_handler:  # Ctrl-C then ends the imports without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
from collections.abc import Callable
from typing import Any

import click

from helpers.display import print_any_character
from helpers.environment.commands import doctor, monitor
from helpers.files import explain_os_error
from helpers.schema import allowed, unit
from helpers.settings import SettingsError, TrainingSettings, check_values, known_settings, preset_names, read_preset
from helpers.sharing.commands import demo, export, share
from helpers.studies.commands import compare, sweep
from helpers.troubleshooting.commands import explain


def _run_options(command: Callable) -> Callable:
    """Add what `run` and `train` share: a preset, a run name, settings."""
    for option in (
        click.option(
            "-p", "--parameter", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="Set one setting."
        ),
        click.option("--run", "run_name", metavar="NAME", help="Name of the run's folder; the preset's when left out."),
        click.option("--preset", default="pocket", show_default=True, help=f"One of {', '.join(preset_names())}."),
    ):
        command = option(command)
    return command


def _chosen_settings(run_name: str | None, parameters: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    return check_values(dict(parameters) | ({} if run_name is None else {"run": run_name}))


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM: what a batch system, a container or a shutdown sends first."""


def _raise_terminated(number: int, frame: Any) -> None:
    raise _TerminatedError


class _OneSentence(click.Group):
    """Print what any console or file can show, and errors that are meant for people as one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        from helpers.course import CourseError

        print_any_character()
        usual = signal.signal(signal.SIGTERM, _raise_terminated)
        try:
            return super().invoke(ctx)
        except (SettingsError, CourseError, OSError) as error:
            sentence = explain_os_error(error) if isinstance(error, OSError) else str(error)
            if not sentence:
                raise
            click.secho(f"Error: {sentence}", fg="red", err=True)
            ctx.exit(2 if isinstance(error, SettingsError) else 1)
        except KeyboardInterrupt as interrupt:
            click.secho("\nInterrupted: what was done is kept, and the same command continues.", fg="red", err=True)
            # as a shell counts a program that Ctrl-C or SIGTERM ended
            ctx.exit(143 if isinstance(interrupt, _TerminatedError) else 130)
        finally:
            signal.signal(signal.SIGTERM, usual)


@click.group(
    cls=_OneSentence,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"\b\nTasks of a clone, which install what they need:\n{tasks.described()}",
)
def main() -> None:
    """Fine-tune GPT-2 on your own graphics card."""


@main.command()
@_run_options
@click.argument("notebooks", nargs=-1)
def run(preset: str, run_name: str | None, parameters: tuple[tuple[str, str], ...], notebooks: tuple[str, ...]) -> None:
    """Execute the NOTEBOOKS (01 to 05 when none is named), then write one report page."""
    from helpers.course import course_notebooks, find_notebook, run_course
    from helpers.data import refuse_missing
    from helpers.environment import unused_card

    defaults, asked = read_preset(preset), _chosen_settings(run_name, parameters)
    of_training = TrainingSettings.model_fields.keys() & asked.keys()
    TrainingSettings.from_preset(preset, **{name: asked[name] for name in of_training})  # checks them together
    refuse_missing(defaults | asked)
    name = asked.pop("run", defaults["run"])
    chosen = [find_notebook(notebook) for notebook in notebooks] or course_notebooks()
    report = run_course(chosen, run=name, parameters=asked, defaults=defaults, progress=True)
    click.echo(f"Report: {report}")
    unused = unused_card()
    if unused:
        click.secho(unused, fg="yellow", err=True)


@main.command()
@_run_options
def train(preset: str, run_name: str | None, parameters: tuple[tuple[str, str], ...]) -> None:
    """Train one run without a notebook; also the entry for `accelerate launch -m helpers train`.

    Under torchrun name the run with `-p run NAME`: torchrun takes `--run` for an option of its own.
    """
    from helpers.data import refuse_missing

    settings = TrainingSettings.from_preset(preset, **_chosen_settings(run_name, parameters))
    refuse_missing(settings.model_dump())
    # Only now: this imports torch and transformers, and a mistyped setting should be reported at once.
    from helpers.training import TrainingBrokenError, fine_tune, is_first_process, leave_process_group

    try:
        finished = fine_tune(settings, progress=True)
    except TrainingBrokenError as error:
        raise click.ClickException(str(error)) from None
    if is_first_process():  # one of many processes prints
        click.echo(finished)
    leave_process_group()


@main.command()
@_run_options
@click.option("--gpu", metavar="NAME", help="A card such as 'RTX 4070 Ti', or 'processor'; left out: the card here.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@click.pass_context
def plan(
    ctx: click.Context,
    preset: str,
    run_name: str | None,
    parameters: tuple[tuple[str, str], ...],
    gpu: str | None,
    as_json: bool,
) -> None:
    """Predict a run's peak memory, time and disk, without a GPU; exit 1 when it does not fit."""
    from helpers.data import refuse_missing
    from helpers.training import plan_run

    settings = TrainingSettings.from_preset(preset, **_chosen_settings(run_name, parameters))
    refuse_missing(settings.model_dump())
    planned = plan_run(settings, card=_card_to_plan_for(gpu))
    click.echo(json.dumps(planned.to_dict(), indent=2) if as_json else planned)
    ctx.exit(0 if planned.fits else 1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print all measurements as JSON, to keep or to post.")
@click.option(
    "--seconds", default=60.0, show_default=True, type=click.FloatRange(0), help="Begin no training later than this."
)
def calibrate(as_json: bool, seconds: float) -> None:
    """Measure short trainings on this machine, from which plan, panel and sweep then predict."""
    from helpers.training import calibrate as measure

    calibration = measure(budget_seconds=seconds)
    click.echo(calibration.model_dump_json(indent=1) if as_json else calibration)


def _card_to_plan_for(gpu: str | None) -> Any:
    """Return the named card, else this machine's, else the card the course is named for; say which one was taken."""
    from helpers.training import DEFAULT_CARD, card_of_this_machine, find_card, this_processor

    if gpu is not None:
        return this_processor() if gpu == "processor" else find_card(gpu)
    here = card_of_this_machine()
    if here is None:
        click.echo(
            f"No NVIDIA card answers here: this is what the run takes on an {DEFAULT_CARD}; --gpu names another, and "
            "--gpu processor plans for this machine's processor.",
            err=True,
        )
        return find_card(DEFAULT_CARD)
    click.echo("Planned for this machine's card; --gpu names another.", err=True)
    return here


@main.command()
def settings() -> None:
    """Print every setting: name, default, allowed values, unit and help."""
    for name, field in known_settings().items():
        click.secho(f"{name} = {field.default}", bold=True)
        click.echo(f"    {field.description} ({', '.join(filter(None, (allowed(field), unit(field))))})")


for command in (compare, demo, doctor, explain, export, monitor, share, sweep):
    main.add_command(command)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, on_interrupt)
    main(prog_name="python -m helpers")
