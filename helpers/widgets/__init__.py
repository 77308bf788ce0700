"""Panels of notebooks 02, 03 and 04 for JupyterLab; a page without a kernel shows a summary of each.

A panel starts with the values of the notebook's parameters cell, and `panel.settings` returns exactly those until
somebody moves a control. All text from a corpus, a model or a person is escaped before it is shown.

- `panel`, `fields`, `drawing`: what all panels share; one control per setting; small charts as HTML and SVG
- `data_panel`: notebook 02, how much of each row is text
- `training_panel`, `run_controls`: notebook 03, all settings; memory, time, learning rate; start, stop, resume
- `playground`: notebook 04, base and tuned model side by side, token by token
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {"data_panel": "DataPanel", "training_panel": "TrainingPanel", "playground": "Playground"},
)
