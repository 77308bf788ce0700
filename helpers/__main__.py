"""The command line, `python -m helpers ...`.

`run` and `settings` are here; every other command is in the `commands` of its room. The tasks `course`, `test`, `lab`
and others work on a fresh clone; see `helpers.environment.tasks`.
"""

import os
import signal

if __name__ == "__main__":
    on_interrupt = signal.getsignal(signal.SIGINT)
    if on_interrupt is signal.default_int_handler:  # Ctrl-C then ends the imports without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys
import warnings
from pathlib import Path
from typing import Any

from helpers.environment import tasks

if __name__ == "__main__":  # what follows imports packages that may have to be installed first
    tasks.start(sys.argv[1:])

import click

from helpers.display import print_any_character, printable
from helpers.environment.commands import doctor, monitor
from helpers.files import explain_os_error
from helpers.paths import COMMAND
from helpers.schema import allowed, unit
from helpers.settings import (
    PATH_SETTINGS,
    SettingsError,
    TrainingSettings,
    describe_without_effect,
    known_settings,
    read_preset,
)
from helpers.sharing.commands import demo, export, share
from helpers.studies.commands import compare, sweep
from helpers.training.commands import calibrate, chosen_settings, plan, run_options, train
from helpers.troubleshooting.commands import explain


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM: what a batch system, a container or a shutdown sends first."""


def _raise_terminated(number: int, frame: Any) -> None:
    raise _TerminatedError


def _printable(message: Any) -> str:
    """Return the lines of a message without what a terminal would obey: a file that it names may have any name."""
    return printable(str(message), keep="\n")


def _format_warning(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> str:
    """Return a warning of ours without the line of code that it comes from, which a terminal need not show."""
    is_ours = category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent)
    return f"Warning: {_printable(message)}\n" if is_ours else _usual_format(message, category, filename, *rest)


_usual_format = warnings.formatwarning


class _OneSentence(click.Group):
    """Print what any console or file can show, and errors that are meant for people as one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        from helpers.course import CourseError

        print_any_character()
        usual = signal.signal(signal.SIGTERM, _raise_terminated)
        warnings.formatwarning = _format_warning
        try:
            return super().invoke(ctx)
        except (SettingsError, CourseError, OSError) as error:
            sentence = explain_os_error(error) if isinstance(error, OSError) else str(error)
            if not sentence:
                raise
            error.with_traceback(None)  # a progress bar that its frames hold is closed, before this line
            click.secho(f"Error: {_printable(sentence)}", fg="red", err=True)
            ctx.exit(2 if isinstance(error, SettingsError) else 1)
        except (KeyboardInterrupt, click.Abort) as interrupt:  # the second where a question was asked
            click.secho("\nInterrupted: what was done is kept, and the same command continues.", fg="red", err=True)
            # as a shell counts a program that Ctrl-C or SIGTERM ended
            ctx.exit(143 if isinstance(interrupt, _TerminatedError) else 130)
        finally:
            signal.signal(signal.SIGTERM, usual)
            warnings.formatwarning = _usual_format


@click.group(
    cls=_OneSentence,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"\b\nTasks for a clone; they install what they need:\n{tasks.described()}",
)
def main() -> None:
    """Fine-tune GPT-2 on your own graphics card."""


@main.command()
@run_options
@click.argument("notebooks", nargs=-1)
def run(preset: str, run_name: str | None, parameters: tuple[tuple[str, str], ...], notebooks: tuple[str, ...]) -> None:
    """Execute NOTEBOOKS (default: 01 to 05), then write one report."""
    from helpers.course import course_notebooks, declared_parameters, find_notebook, run_course
    from helpers.data import refuse_missing
    from helpers.environment import unused_card
    from helpers.training import check_same_values

    defaults, asked = read_preset(preset), chosen_settings(run_name, parameters)
    of_training = TrainingSettings.model_fields.keys() & asked.keys()
    settings = TrainingSettings.from_preset(preset, **{name: asked[name] for name in of_training})
    if idle := describe_without_effect(settings):
        click.secho(f"Warning: {idle}", fg="yellow", err=True)
    refuse_missing(defaults | asked)
    name = asked.pop("run", defaults["run"])
    chosen = [find_notebook(notebook) for notebook in notebooks] or course_notebooks()
    if (training := find_notebook("03")) in chosen:
        written = declared_parameters(training).items()  # a path in it would begin in its own folder
        known = {key: value for key, value in written if value is not ... and key not in PATH_SETTINGS}
        check_same_values(name, known | defaults | asked)
    report = run_course(chosen, run=name, parameters=asked, defaults=defaults, progress=True)
    click.echo(f"Report: {report}")
    unused = unused_card()
    if unused:
        click.secho(unused, fg="yellow", err=True)


@main.command()
def settings() -> None:
    """Print every setting: default, allowed values, unit and help."""
    for name, field in known_settings().items():
        click.secho(f"{name} = {field.default}", bold=True)
        click.echo(f"    {field.description} ({', '.join(filter(None, (allowed(field), unit(field))))})")


def _arguments(given: list[str]) -> list[str]:
    """Return the command line with the home folder in place of `~`, which no shell of Windows does.

    Click would do that too, and would also replace * and $ there, in quotes or not: a prompt "*" became file names.
    """
    return [os.path.expanduser(each) for each in given] if os.name == "nt" else given  # noqa: PTH111 (never raises)


for command in (calibrate, compare, demo, doctor, explain, export, monitor, plan, share, sweep, train):
    main.add_command(command)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, on_interrupt)
    main(_arguments(sys.argv[1:]), prog_name=COMMAND)
