"""Batch runs, from one study file to one table of all runs: the commands `sweep` and `compare`; not tied to a notebook.

- `study`, `study_file`, `comparability`: what a study file declares, how it is checked, which trials can be ranked
- `study_plan`: hours, memory and disk, predicted before anything starts
- `queue`, `worker`, `trial`, `supervision`: trials in Optuna's storage, who runs them, and the progress on the screen
- `compared_run`, `comparison`, `comparison_page`: runs read from their folders, one table, one page with pictures
- `commands`: `sweep` and `compare` of the command line

A trial runs notebooks like any run; `helpers.training.pruning` reports from the training in them to the study, whose
storage `helpers.training.study_storage` opens.
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
