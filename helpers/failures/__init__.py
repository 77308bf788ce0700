"""Every failure of notebook 05: made to happen, recognised from its signs, and mended.

`explain` reads an error or a log and says what it most likely is; `%load_ext helpers.failures` adds it to a notebook as
`%explain`. `run_in_child` makes a failure happen safely. Loading this imports neither torch nor transformers, so that
`explain` works where they are what is broken.
"""

from helpers.failures.broken_runs import BrokenRun, broken_run
from helpers.failures.child import ChildResult, run_in_child
from helpers.failures.examine import Examination, examine, practice_run
from helpers.failures.explain import Cause, Explanation, explain
from helpers.failures.magic import load_ipython_extension

__all__ = [
    "BrokenRun",
    "Cause",
    "ChildResult",
    "Examination",
    "Explanation",
    "broken_run",
    "examine",
    "explain",
    "load_ipython_extension",
    "practice_run",
    "run_in_child",
]
