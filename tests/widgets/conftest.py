"""Fixtures of the panel tests."""

import pytest

from helpers.settings import TrainingSettings
from helpers.widgets import TrainingPanel


@pytest.fixture
def panel():
    """Return a training panel with the default settings."""
    return TrainingPanel(TrainingSettings())


@pytest.fixture
def markup():
    """Return text that would run a script if it was not escaped."""
    return "<script>alert(1)</script><img src=x onerror=alert(1)>"
