"""Notebook 05: known failures, recognised in an error or a log, explained, and made to happen on purpose.

`explanation` holds `explain` and its magic (`%load_ext helpers.troubleshooting`), `known_failures` reads what it
knows from a YAML file; `reading`, `log_rows` and `log_checks` read what it is given, `issue_report` writes what to
paste into an issue, `commands` has the command. `examination` checks a run that does not learn. `lab` makes failures
happen safely, `broken_runs` are exercises.
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
        "lab": "Table error_of run_cells run_in_child show_fix tiny_model train_briefly",
        "broken_runs": "BrokenRun broken_run",
    },
)
