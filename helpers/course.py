"""Run the notebooks in order with papermill, into a run's folder."""

import ast
import asyncio
import atexit
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from helpers.display import did_you_mean, first_line, printable, quoted
from helpers.files import environment_variables, read_json_lines
from helpers.paths import COMMAND, NOTEBOOKS, runs_folder
from helpers.report import write_report
from helpers.settings import SettingsError, describe_new_run, known_settings, refuse_training_text, run_folder

_NEXT = "06"  # the first notebook that is not in the course itself: it trains for minutes, and nothing needs it
_SECONDS_BETWEEN_SAVES = 1.0  # of a notebook that is executed: what a killed process may lose
_SECONDS_BETWEEN_DRAWINGS = 1.0  # of the progress bar, while a cell runs
_SAVE_SECONDS = 120.0  # for the step and the checkpoint of a training that is interrupted
_BEFORE_THE_CELLS = "__import__('helpers.course').course.end_at_once()"  # leaves no name that a notebook could use


class CourseError(RuntimeError):
    """A notebook that failed; the message names the notebook, the error and the executed file."""


def all_notebooks() -> list[Path]:
    """Return every notebook in its order; raise `CourseError` where there are none."""
    notebooks = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:  # a wheel brings the package alone
        raise CourseError(
            f"There are no notebooks at {NOTEBOOKS}: an installed wheel has none. Run this in a clone of the project, "
            f"or train without a notebook: `{COMMAND} train`."
        )
    return notebooks


def course_notebooks() -> list[Path]:
    """Return the notebooks that a course run executes by default."""
    return [path for path in all_notebooks() if path.stem < _NEXT]


def find_notebook(name: str) -> Path:
    """Return the notebook named '03', '03_fine_tuning' or by its path; raise `SettingsError` if there is none."""
    if Path(name).suffix == ".ipynb" and Path(name).exists():
        return Path(name)
    known = {path.stem: path for path in all_notebooks()}
    for stem, path in known.items():
        if name in (stem, stem[:2], path.name):
            return path
    raise SettingsError(f"There is no notebook {quoted(name)}{did_you_mean(name, known, cutoff=0.3)}")


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """Return the names in a notebook's cell tagged `parameters`, with their values; `...` is one that is computed.

    Raises:
        SettingsError: it is no notebook.
    """
    try:
        declared = _papermill().inspect_notebook(str(notebook))
    except Exception as error:  # noqa: BLE001 (the libraries raise anything for a file that is none, or is cut short)
        raise SettingsError(f"{notebook} cannot be read as a notebook ({first_line(error)}).") from None
    return {name: _literal(parameter["default"]) for name, parameter in declared.items()}


def _literal(code: str) -> Any:
    try:
        return ast.literal_eval(code)
    except (ValueError, SyntaxError):
        return ...


@contextmanager
def without_address_grammar() -> Iterator[None]:
    """Import papermill, nbformat or nbclient in this block, without a check of web addresses that nobody here asks for.

    jsonschema uses rfc3987_syntax where it is installed, and building that one's grammar takes 2 s in each process.
    """
    is_missing = sys.modules.setdefault("rfc3987_syntax", None) is None  # as Python notes a module that cannot be had
    try:
        yield
    finally:
        if is_missing:
            sys.modules.pop("rfc3987_syntax", None)  # such a block in another thread may have done it


def _papermill() -> Any:
    with without_address_grammar():
        import papermill
    return papermill


def run_course(
    notebooks: Sequence[Path],
    *,
    run: str,
    parameters: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Path:
    """Execute notebooks in order into `runs/<run>/notebooks/`, then write the report; return its path.

    Args:
        notebooks: their paths.
        run: the run's name; every notebook gets it.
        parameters: what the user asked for; each must be declared by one of the notebooks.
        defaults: a preset's values; each goes to the notebooks that declare it.
        progress: show papermill's progress bar, one step per cell.

    Raises:
        SettingsError: no chosen notebook has one of the parameters, or forgetting would be measured on the training
            text; nothing was run.
        CourseError: a notebook failed; it was saved with its traceback, and the report shows what ran.
    """
    folder = run_folder(run) / "notebooks"
    declared = {notebook: declared_parameters(notebook) for notebook in notebooks}
    known = set().union(*declared.values())
    for name in parameters:
        if name not in known:
            hint = did_you_mean(name, known or known_settings())
            raise SettingsError(f"None of the chosen notebooks has a parameter {name!r}{hint}")
    values = {**(defaults or {}), **parameters, "run": run}
    texts = {name: values.get(name, known_settings()[name].default) for name in ("source", "general_source")}
    if texts.keys() <= known:  # else notebook 04 would say so after the training
        refuse_training_text(texts["general_source"], source=texts["source"], run=run)
    elif "general_source" in known and (note := describe_new_run(run)):  # notebook 04 says it where nobody looks yet
        warnings.warn(note, stacklevel=2)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for notebook in notebooks:
            its_own = {name: value for name, value in values.items() if name in declared[notebook]}
            _execute(notebook, folder / notebook.name, its_own, progress=progress)
    finally:
        report = write_report(run)
    return report


def _execute(notebook: Path, output: Path, parameters: dict[str, Any], *, progress: bool) -> None:
    papermill = _papermill()
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        # The kernel works in the notebook's folder, where a relative COURSE_RUNS would be another folder.
        with environment_variables({"COURSE_RUNS": str(runs_folder())}):
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters=parameters,
                engine_name=_register_engine(output.parent.parent),
                kernel_name="python3",
                kernel_manager_class=kernel_of_this_python(),  # a class, not `km`: papermill shuts down what it made
                cwd=str(notebook.parent),
                progress_bar={"desc": notebook.stem} if progress else False,
                # In the middle of the progress bars the kernel would warn that it listens on this machine only, and log
                # an error where its last answer has not quite ended when jupyter_client interrupts it to shut it down.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL", f"--IPKernelApp.exec_lines={_BEFORE_THE_CELLS}"],
            )
    except PapermillExecutionError as error:
        raise CourseError(
            f"{notebook.name} failed in cell {error.exec_count}: {error.ename}: {_sentence(error.evalue)} "
            f"The executed notebook with its traceback is {output}."
        ) from None
    except (DeadKernelError, CellTimeoutError) as error:
        raise CourseError(f"{notebook.name} lost its kernel: {error}. What ran is in {output}.") from None


def _register_engine(folder: Path) -> str:
    """Register an engine for papermill that saves a notebook at most once a second, and at its end; return its name.

    Its bar also moves while a cell runs, and shows how far the training of the run in `folder` is.

    papermill's usual engine saves before and after each cell, text included: 2.5 s of the 19 s that notebook 02 takes.
    """
    from papermill.engines import NBClientEngine, papermill_engines

    class SavesSeldom(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **how: Any) -> Any:
            save = nb_man.save

            def save_seldom(**changed: Any) -> None:
                if (nb_man.now() - nb_man.last_save_time).total_seconds() >= _SECONDS_BETWEEN_SAVES:
                    save(**changed)

            nb_man.save = save_seldom
            try:
                with _redrawn(nb_man.pbar, folder):
                    return super().execute_managed_notebook(nb_man, kernel_name, **how)
            finally:
                nb_man.save = save  # papermill then saves all of it, whatever has happened

    papermill_engines.register("course", SavesSeldom)
    return "course"


@contextmanager
def _redrawn(bar: Any, folder: Path) -> Iterator[None]:
    """Redraw a bar in a terminal while a cell runs: it moves with cells only, and one that trains can take hours."""
    ended = threading.Event()

    def redraw() -> None:
        while not ended.wait(_SECONDS_BETWEEN_DRAWINGS):
            with suppress(SettingsError, OSError):  # a damaged file: the cell that reads it says so
                is_trained = (folder / "training.json").exists()
                rows = [] if is_trained else read_json_lines(folder / "history.jsonl")
                losses = [row for row in rows if "loss" in row]
                bar.set_postfix_str(f"step {losses[-1]['step']}, loss {losses[-1]['loss']:.3f}" if losses else "")

    thread = threading.Thread(target=redraw, name="bar", daemon=True)
    if bar is not None and bar.fp.isatty():  # in a file each drawing would be another line
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.is_alive():
            thread.join()


def end_at_once() -> None:
    """Let this process end after the exit functions that are registered from now on.

    Python would then take PyTorch and transformers apart, object by object: 2 s for each kernel.
    """

    def end() -> None:
        weakref.finalize._exitfunc()  # removes temporary folders; it may have been registered before this
        os._exit(0)

    atexit.register(end)


def kernel_of_this_python() -> type:
    """Return a kernel manager class whose python3 kernel runs in the Python that calls this.

    Otherwise Jupyter may find a `python3` kernel that another installation left in the user's folders. With no
    folders to search, it takes the kernel of the `ipykernel` that this Python imports.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager

    class KernelOfThisPython(AsyncKernelManager):
        def __init__(self, **traits: Any) -> None:
            super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **traits)

        async def start_kernel(self, **how: Any) -> None:
            # Windows would send a kernel the terminal's Ctrl-C too: with that of `let_cell_end` it would be the second
            # one, which does not let a training save. (Elsewhere jupyter_client gives a kernel a session of its own.)
            if group := getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0):
                how["creationflags"] = group
            await super().start_kernel(**how)

        async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
            interrupted = isinstance(sys.exc_info()[1], KeyboardInterrupt)  # Ctrl-C or SIGTERM, which the kernel missed
            if interrupted:
                # The cell's task may notice the end of its kernel when nobody asks for its result any more.
                asyncio.get_running_loop().set_exception_handler(_report_unless_kernel_died)
                await self.let_cell_end()
            # A kernel that is asked to end prints a traceback when a cell is not done: after Ctrl-C, kill it.
            await super().shutdown_kernel(now=now or interrupted, restart=restart)

        async def let_cell_end(self) -> None:
            """Interrupt the cell and wait for its end: a training finishes its step and writes a checkpoint."""
            await self.interrupt_kernel()
            client = self.client()
            client.start_channels()
            try:
                with suppress(RuntimeError):  # no answer in time
                    await client.wait_for_ready(timeout=_SAVE_SECONDS)  # which is answered after the cell
            finally:
                client.stop_channels()

    return KernelOfThisPython


def _report_unless_kernel_died(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    from nbclient.exceptions import DeadKernelError

    if not isinstance(context.get("exception"), DeadKernelError):
        loop.default_exception_handler(context)


def _sentence(message: str) -> str:
    r"""Return an error's message on one line, with a full stop.

    >>> _sentence("expected 3\n  but got 4")
    'expected 3 but got 4.'
    """
    line = " ".join(printable(message).split())
    return line if line.endswith((".", "!", "?")) else f"{line}."
