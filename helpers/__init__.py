"""The package behind the notebooks: a room (sub-package) for each of the five, and `widgets`, `studies` and `sharing`.

At the top, `settings` declares every setting (`schema` says what a setting is), `paths` knows where things are, `model`
loads a model and its tokenizer, `course` runs notebooks, `exercises` checks answers, `plots` and `display` draw and
format, `files` writes completely or not at all, and `__main__` is the command line. "Finding your way in the code" in
notebooks/GUIDE.md answers common questions.

Import from a room, never from its insides: `from helpers.training import fine_tune`. Importing `helpers` or a room
imports nothing heavy; a name is loaded when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(
    room: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return a room's `__getattr__`, `__dir__` and `__all__`, which import a module when one of its names is needed.

    Args:
        room: the package, `__name__`.
        modules: module name -> the public names that come from it, separated by spaces. A name must differ from
            every module of the room: Python binds an imported module to the package under its own name.
    """
    home = {name: module for module, names in modules.items() for name in names.split()}

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"{room} has no {name!r}; it has {', '.join(sorted(home))}.")
        return getattr(import_module(f"{room}.{home[name]}"), name)

    return load, lambda: sorted(home), sorted(home)
