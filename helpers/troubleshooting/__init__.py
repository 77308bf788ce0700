"""Every failure of notebook 05: made to happen, recognised from its signs, and mended.

`explain` reads an error or a log and says what it most likely is; `%load_ext helpers.troubleshooting` adds it to
a notebook as `%explain`. `run_in_child` makes a failure happen safely. Loading this imports neither torch nor
transformers, so that `explain` works where they are what is broken.
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "explanation": "Cause Explanation explain",
        "examination": "Examination examine practice_run",
        "broken_runs": "BrokenRun broken_run",
        "child": "ChildResult run_in_child",
        "commands": "load_ipython_extension",
    },
)
