"""Failures of runs and runners: resuming, workers, kernels, parameters, time and disk."""

import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from helpers.troubleshooting.child import run_in_child
from helpers.troubleshooting.library_cases import error_of
from helpers.troubleshooting.reproduced import Reproduced, notebook_of, own_kernel, run_cells, tiny_model, train_briefly


def resume_traps() -> Reproduced:
    """12. One run without a break, and five that resume: as they should, and in the four ways that differ."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        straight = _schedule(folder / "straight")
        half = folder / "straight" / "checkpoint-4"
        resumed = _schedule(folder / "same", half)
        longer = _schedule(folder / "longer", half, max_steps=16)
        without = shutil.copytree(half, folder / "checkpoint-4")
        for file in ("optimizer.pt", "scheduler.pt"):
            (without / file).unlink()
        restarted = _schedule(folder / "without", without)
        fallback, error = _cut_short(folder / "straight")
    return Reproduced(
        "A resume that is another run",
        error,
        {
            "learning rates from step 5": resumed_rates(straight),
            "with twice the steps": resumed_rates(longer),
            "without scheduler.pt": resumed_rates(restarted),
            "newest checkpoint cut short": error,
        },
        {
            "learning rates from step 5": resumed_rates(resumed),
            "losses equal to the run without a break": _losses(straight)[-4:] == _losses(resumed)[-4:],
            "newest checkpoint cut short": f"the one before it: {fallback}",
        },
        "T16",
    )


def _schedule(folder: Path, resume_from: Path | None = None, **changes: Any) -> list[dict[str, Any]]:
    """Train eight steps on the same rows and return the log; a resumed run's log begins with the old rows."""
    import torch

    tokens = torch.randint(4096, (32, 16), generator=torch.Generator().manual_seed(0))
    arguments = {"max_steps": 8, "save_steps": 4, "save_strategy": "steps", "learning_rate": 1e-3, "seed": 0} | changes
    rows = [{"input_ids": row} for row in tokens]
    return train_briefly(tiny_model(), rows, folder=folder, resume_from=resume_from, **arguments)


def resumed_rates(log: list[dict[str, Any]]) -> list[float]:
    """Return the learning rates of steps 5 to 8."""
    return [round(row["learning_rate"], 8) for row in log if 5 <= row["step"] <= 8]


def _losses(log: list[dict[str, Any]]) -> list[float]:
    return [round(row["loss"], 4) for row in log]


def _cut_short(folder: Path) -> tuple[str, str]:
    """Cut the newest checkpoint's weights short; return the checkpoint to resume from, and what loading it says."""
    from safetensors.torch import load_file

    from helpers.training import last_complete_checkpoint

    newest = folder / "checkpoint-8" / "model.safetensors"
    with newest.open("r+b") as file:
        file.truncate(1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says which checkpoint it passes over
        found = last_complete_checkpoint(folder)
    return (found.name if found else "none"), error_of(lambda: load_file(newest))


_LOADER = (
    "from torch.utils.data import DataLoader\n"
    "rows = list(DataLoader(Rows(), num_workers=1, multiprocessing_context='spawn'))\n"
    "print('passed:', len(rows), 'rows')"
)
_CLASS = (
    "class Rows:\n    def __len__(self):\n        return 4\n\n    def __getitem__(self, index):\n        return index\n"
)


def spawned_workers() -> Reproduced:
    """13. A worker that is spawned does not know a class of the notebook's; it knows one of a module's."""
    in_cell = run_in_child(f"{_CLASS}{_LOADER}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "my_rows.py").write_text(_CLASS, encoding="utf-8")
        paths = f"import sys; sys.path.insert(0, {folder!r})\nfrom my_rows import Rows\n"
        in_module = run_in_child(f"{paths}{_LOADER}")
    lines = [line for line in in_cell.output.splitlines() if "Can't get attribute" in line]
    symptom = lines[0].strip() if lines else in_cell.last_line
    return Reproduced(
        "Workers that cannot import a cell's class",
        symptom,
        {"class in the notebook": in_cell.last_line},
        {"class in a module": in_module.last_line},
        "T18",
    )


def runners() -> list[Reproduced]:
    """15. What stops a notebook that is run by a program: kernel, death, parameter, time, disk."""
    return [wrong_kernel(), dead_kernel(), untagged_parameter(), cell_timeout(), full_disk()]


def wrong_kernel() -> Reproduced:
    """15a. A notebook that names a kernel there is none of."""
    broken = error_of(lambda: run_cells(["1 + 1"], kernel_name="gpt2-course"))
    return Reproduced("No such kernel", broken, {"1 + 1": broken}, {"1 + 1": run_cells(["1 + 1"])[0]}, "T23")


def dead_kernel() -> Reproduced:
    """15b. A kernel that is killed in the middle of a cell, as the system does when memory is gone."""
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM if os.name == 'nt' else signal.SIGKILL)"
    broken = error_of(lambda: run_cells([kill]))
    mended = run_cells(["sum(range(1000))"])[0]
    return Reproduced("The kernel died", broken, {"the cell": broken}, {"the cell": mended}, "T20")


def untagged_parameter() -> Reproduced:
    """15c. A parameter that papermill puts above the cell that sets it again; and below it, where it is tagged."""
    found, heard = {}, {}
    for is_tagged in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            found[is_tagged], heard[is_tagged] = _papermill(Path(folder), is_tagged=is_tagged)
    return Reproduced(
        "A parameter without effect",
        "; ".join(heard[False]) or "papermill says nothing",
        {"epochs asked for": "5", "epochs used": found[False]},
        {"epochs asked for": "5", "epochs used": found[True]},
        "T24",
    )


def _papermill(folder: Path, *, is_tagged: bool) -> tuple[str, list[str]]:
    """Run a notebook to its end with a parameter; return the value that its last cell has, and what papermill logs."""
    import logging

    import nbformat
    import papermill

    notebook = notebook_of(["epochs = 2", "epochs"], parameters_tag=is_tagged)
    nbformat.write(notebook, folder / "in.ipynb")
    log, heard = logging.getLogger("papermill"), []

    def hear(record: logging.LogRecord) -> bool:
        heard.append(record.getMessage())
        return False  # it is shown in the result

    log.addFilter(hear)
    try:
        executed = papermill.execute_notebook(
            str(folder / "in.ipynb"),
            str(folder / "out.ipynb"),
            parameters={"epochs": 5},
            progress_bar=False,
            kernel_manager_class=own_kernel(),
            extra_arguments=["--IPKernelApp.log_level=50"],
        )
    finally:
        log.removeFilter(hear)
    return executed.cells[-1].outputs[0]["data"]["text/plain"], heard


def cell_timeout() -> Reproduced:
    """15d. A limit is for each cell: one slow cell passes it, two of half its length do not add up to it."""
    slow = error_of(lambda: run_cells(["import time; time.sleep(30)"], timeout=2, allow_errors=False))
    halves = run_cells(["import time; time.sleep(1.2); 'passed'"] * 2, timeout=2)
    return Reproduced(
        "A cell took too long",
        slow,
        {"limit 2 s": slow.split(":")[0]},
        {"limit 2 s": f"two cells of 1.2 s: {halves[-1]}"},
        "T25",
    )


def full_disk() -> Reproduced:
    """15e. A file that may not grow: the checkpoint is cut short, and what is left is told from a whole one."""
    source = (
        "import resource, signal\nfrom safetensors.torch import save_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "save_file({{'weight': torch.zeros(10**5)}}, {path!r})\nprint('written')"
    )
    if sys.platform == "win32":
        return Reproduced("The disk is full", "only where a process can be given a limit", sign="T17")
    with tempfile.TemporaryDirectory() as folder:
        small, enough = (
            run_in_child(source.format(limit=limit, path=f"{folder}/{limit}.safetensors")) for limit in (4096, 10**7)
        )
    return Reproduced(
        "The disk is full", small.last_line, {"the file": small.last_line}, {"the file": enough.last_line}, "T17"
    )
