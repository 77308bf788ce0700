"""A finished run to share."""

import pytest


@pytest.fixture
def run(tiny_run):
    """Return the name of a finished run."""
    return tiny_run.run
