"""Batch runs: many runs from one study file, and one table of them all. No notebook; the commands `sweep`, `compare`.

study, study_file: what a study file declares, and its checks      comparability: which trials can be ranked
study_plan: hours, memory and disk, predicted                       queue, worker, trial: Optuna's queue and who runs it
supervision: the workers of one command, and the progress           compared_run, comparison, comparison_page: the table
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "compared_run": "read_run",
        "comparison": "compare promote",
        "comparison_page": "write_page",
        "study_file": "find_study read_study",
        "study_plan": "plan_study",
    },
)
