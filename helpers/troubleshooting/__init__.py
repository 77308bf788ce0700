"""Notebook 05: known failures, recognised in an error or a log, explained, and reproduced on purpose.

- `explanation`, `known_failures`: `explain` and its magic (`%load_ext helpers.troubleshooting`); what it knows
- `reading`, `log_rows`, `log_checks`: read an error, a log or a notebook; find and judge the numbers in it
- `examination`: check a run that does not learn
- `issue_report`: write a text to paste into an issue
- `lab`, `broken_runs`: make failures happen safely; three broken runs for the exercises
- `commands`: the `explain` command

Importing the room loads neither torch nor transformers, so that `explain` works where they are broken.
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "explanation": "Cause Explanation explain load_ipython_extension",
        "issue_report": "write_issue_report",
        "known_failures": "KnownFailure",
        "examination": "Examination examine",
        "lab": "error_of measure_product run_cells run_in_child script_folder tiny_model train_briefly write_notebook",
        "broken_runs": "BrokenRun broken_run",
    },
)
