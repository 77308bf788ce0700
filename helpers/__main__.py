"""The command line, `python -m helpers ...`.

`run` and `settings` are here; every other command is in the `commands` of its room. The tasks `course`, `test`, `lab`
and others work on a fresh clone; see `helpers.environment.tasks`.
"""

import signal

if __name__ == "__main__":
    on_interrupt = signal.getsignal(signal.SIGINT)
    if on_interrupt is signal.default_int_handler:  # so that Ctrl-C during the imports prints no traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys
import warnings
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from helpers.environment import tasks

if __name__ == "__main__":  # the imports below need packages that may not be installed yet
    tasks.start(sys.argv[1:])

import click

from helpers.display import did_you_mean, print_any_character, printable
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
from helpers.training.commands import calibrate, plan, run_options, settings_from_options, train
from helpers.troubleshooting.commands import explain

_OPTION_CUTOFF = 0.75  # of similarity; the two hyphens alone make short options half equal


class _TerminatedError(KeyboardInterrupt):
    """Raised on SIGTERM, the first signal that a batch system, a container runtime or a shutdown sends."""


def _raise_terminated(number: int, frame: Any) -> None:
    raise _TerminatedError


def _printable(message: Any) -> str:
    """Return a message without control characters except line breaks: a file name in it can contain anything."""
    return printable(str(message), keep="\n")


def _format_warning(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> str:
    """Format our own warnings without the file name and source line that Python adds."""
    is_ours = category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent)
    return f"Warning: {_printable(message)}\n" if is_ours else _default_format(message, category, filename, *rest)


_default_format = warnings.formatwarning


def _describe_unknown(option: str, command: click.Command) -> str:
    """Return a sentence about an option that a command does not have, which may be meant as a setting."""
    options = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
    setting = option.lstrip("-").replace("-", "_")
    takes_settings = any(parameter.name == "parameters" for parameter in command.params)
    hint = did_you_mean(setting, known_settings()) if takes_settings else ""
    if "did you mean" in hint and not get_close_matches(option, options, cutoff=_OPTION_CUTOFF):
        return f"There is no option {option!r}{hint} A setting is given as `-p NAME VALUE`."
    return f"There is no option {option!r}{did_you_mean(option, options, cutoff=_OPTION_CUTOFF)}"


class _CourseGroup(click.Group):
    """A command group that prints any character on any console, and expected errors as one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        from helpers.course import CourseError

        print_any_character()
        previous_handler = signal.signal(signal.SIGTERM, _raise_terminated)
        warnings.formatwarning = _format_warning
        try:
            return super().invoke(ctx)
        except (SettingsError, CourseError, OSError) as error:
            sentence = explain_os_error(error) if isinstance(error, OSError) else str(error)
            if not sentence:
                raise
            error.with_traceback(None)  # frees its frames, which closes their progress bar first
            click.secho(f"Error: {_printable(sentence)}", fg="red", err=True)
            ctx.exit(2 if isinstance(error, SettingsError) else 1)
        except click.NoSuchOption as error:
            if error.ctx is not None:
                error.message, error.possibilities = _describe_unknown(error.option_name, error.ctx.command), None
            raise
        except (KeyboardInterrupt, click.Abort) as interrupt:  # Abort: Ctrl-C at a prompt
            click.secho("\nInterrupted: completed work is kept; repeat the command to continue.", fg="red", err=True)
            # the exit codes that a shell reports after SIGTERM and Ctrl-C
            ctx.exit(143 if isinstance(interrupt, _TerminatedError) else 130)
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
            warnings.formatwarning = _default_format


@click.group(
    cls=_CourseGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"\b\nTasks for a clone; they install what they need:\n{tasks.task_list()}",
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

    defaults, overrides = read_preset(preset), settings_from_options(run_name, parameters)
    training_names = TrainingSettings.model_fields.keys() & overrides.keys()
    settings = TrainingSettings.from_preset(preset, **{name: overrides[name] for name in training_names})
    if ignored := describe_without_effect(settings):
        click.secho(f"Warning: {ignored}", fg="yellow", err=True)
    refuse_missing(defaults | overrides)
    name = overrides.pop("run", defaults["run"])
    chosen = [find_notebook(notebook) for notebook in notebooks] or course_notebooks()
    if (training := find_notebook("03")) in chosen:
        declared = declared_parameters(training).items()  # its relative paths start in the notebook's folder
        notebook_values = {key: value for key, value in declared if value is not ... and key not in PATH_SETTINGS}
        check_same_values(name, notebook_values | defaults | overrides)
    report = run_course(chosen, run=name, parameters=overrides, defaults=defaults, progress=True)
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


for command in (calibrate, compare, demo, doctor, explain, export, monitor, plan, share, sweep, train):
    main.add_command(command)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, on_interrupt)
    main(prog_name=COMMAND, windows_expand_args=False)  # click would turn a prompt "*" into file names, even in quotes
