"""The fifteen failures of notebook 05, each made to happen for real, on a CPU, in seconds."""

from helpers.troubleshooting.learning_cases import (
    by_heart,
    empty_tokenizer,
    hidden_nan,
    never_stops,
    pure_half,
    repetition,
    shifted_twice,
)
from helpers.troubleshooting.library_cases import (
    error_of,
    migrated_script,
    old_script,
    out_of_range,
    script_data_set,
    tied_weights,
)
from helpers.troubleshooting.memory_cases import (
    kept_by_display,
    kept_by_traceback,
    memory_savers,
    out_of_memory,
    plan_for,
)
from helpers.troubleshooting.reproduced import Reproduced, run_cells, tiny_model, train_briefly
from helpers.troubleshooting.runner_cases import (
    cell_timeout,
    dead_kernel,
    full_disk,
    resume_traps,
    runners,
    spawned_workers,
    untagged_parameter,
    wrong_kernel,
)

__all__ = [
    "Reproduced",
    "by_heart",
    "cell_timeout",
    "dead_kernel",
    "empty_tokenizer",
    "error_of",
    "full_disk",
    "hidden_nan",
    "kept_by_display",
    "kept_by_traceback",
    "memory_savers",
    "migrated_script",
    "never_stops",
    "old_script",
    "out_of_memory",
    "out_of_range",
    "plan_for",
    "pure_half",
    "repetition",
    "resume_traps",
    "run_cells",
    "runners",
    "script_data_set",
    "shifted_twice",
    "spawned_workers",
    "tied_weights",
    "tiny_model",
    "train_briefly",
    "untagged_parameter",
    "wrong_kernel",
]
