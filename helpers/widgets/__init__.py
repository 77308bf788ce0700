"""Panels for JupyterLab, built from the settings' own fields; each works without a front end too.

A panel begins with the values of the notebook's parameters cell, and `panel.settings` returns exactly those until
somebody moves something. Whatever a text or a person gives is escaped before it is shown.
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "data_panel": "DataPanel",
        "training_panel": "TrainingPanel",
        "playground": "Playground",
    },
)
