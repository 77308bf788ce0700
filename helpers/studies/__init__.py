"""Batch runs: the commands `sweep` and `compare` turn one study file into one table of all runs; used by no notebook.

- `study`, `study_file`, `comparability`: what a study file declares, how it is checked, which trials can be ranked
- `study_plan`: predict hours, memory and disk before anything starts
- `queue`, `worker`, `trial`, `supervision`: trials in Optuna's storage, the workers that run them, the live progress
- `compared_run`, `comparison`, `comparison_page`: read runs from their folders; show them in a table and on a page
- `commands`: `sweep` and `compare` on the command line

A trial runs notebooks like any run. `helpers.training.pruning` reports their training to the study, whose storage is
opened by `helpers.training.study_storage`.
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "compared_run": "read_run",
        "comparison": "compare promote",
        "comparison_page": "plot_all write_page",
        "study_file": "find_study read_study",
        "study_plan": "plan_study",
    },
)
