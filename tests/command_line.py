"""The command line, called in this process."""

from click.testing import CliRunner

from helpers.__main__ import main


def call(*arguments, **options):
    """Call it and return the result of click's runner; `options` are for the runner, such as `input`."""
    return CliRunner().invoke(main, list(map(str, arguments)), **options)
