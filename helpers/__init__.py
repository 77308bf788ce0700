"""The package behind the notebooks, on one screen. A module imports only from those above it; a folder is a "room".

    paths             where the course's folders, the runs and the user's files are
    display           sizes, durations, tables, "did you mean", the palette
    environment/      notebook 1: reading a machine, the doctor's checks and fixes, PyTorch's wheels, the monitor
    plots             all plots: rows in, matplotlib Axes out
    schema            what a setting is: a field with its bounds, messages, slider and help
    formats           what the JSON files of a run hold
    files             files and folders written atomically: completely or not at all
    settings          every setting, and the presets of assets/presets/
    exercises/        the exercises of all notebooks, and what is solved
    model             a model and its tokenizer: shipped, from a folder, from the Hub, or new
    report            the report page of a run
    course            runs notebooks
    data/             notebook 2: any source as documents, split, tokens, blocks without padding, labels
    training/         notebook 3: plan, Trainer, engine (loss, attention), LoRA, checkpoints, resume, model card
    evaluation/       notebook 4: perplexity, bits per byte, samples, copied text, memorised secrets
    troubleshooting/  notebook 5: `explain`, the examination of a run, the laboratory
    widgets/          panels of notebooks 2 to 4
    studies/          many runs: `sweep` and `compare`
    sharing/          `export`, `demo` and `share`
    assets/           the pocket model, texts, presets, studies, templates, known failures
    __main__          the command line; a room's commands are in its `commands`

Each room's docstring lists its modules. Import from a room, not from the modules inside it: `from helpers.training
import fine_tune`. Importing `helpers` or a room imports nothing heavy; a module is loaded when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(
    room: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return a room's `__getattr__`, `__dir__` and `__all__`, which import a module when one of its names is used.

    Args:
        room: the package, `__name__`.
        modules: module name -> its public names, separated by spaces. No name may equal the name of a module in the
            room: Python binds an imported module to the package under its own name.
    """
    home = {name: module for module, names in modules.items() for name in names.split()}

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"{room} has no {name!r}; it has {', '.join(sorted(home))}.")
        return getattr(import_module(f"{room}.{home[name]}"), name)

    return load, lambda: sorted(home), sorted(home)
