"""Many runs from one study file: what it asks for, what it will take, the queue, the workers, the comparison.

Optuna holds the study: its queue hands each point to one worker, its storage keeps what came of it. A worker runs each
trial's notebooks through papermill into a run's folder of its own, so that every trial can be opened like any run.
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "comparison": "compare promote read_run",
    },
)
