"""The command line, called in this process."""

from click.testing import CliRunner

from helpers.__main__ import main


def call(*arguments, **options):
    """Call it and return what click's runner saw; `options` are those of the runner, such as its `input`."""
    return CliRunner().invoke(main, list(map(str, arguments)), **options)
