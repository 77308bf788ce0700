"""Panels for JupyterLab, built from the settings' own fields; each works without a front end too.

A panel begins with the values of the notebook's parameters cell, and `panel.settings` returns exactly those until
somebody moves something. Whatever a text or a person gives is escaped before it is shown.
"""

from helpers.widgets.data_panel import DataPanel
from helpers.widgets.playground import Playground
from helpers.widgets.training_panel import TrainingPanel

__all__ = ["DataPanel", "Playground", "TrainingPanel"]
