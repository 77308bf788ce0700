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
from helpers.files import environment_variables, read_json_lines, remove_link
from helpers.paths import COMMAND, NOTEBOOKS, runs_folder
from helpers.report import write_report
from helpers.settings import SettingsError, describe_new_run, known_settings, refuse_training_text, run_folder

_EXTRA = "06"  # the first notebook outside the default course: it trains for minutes, and no other notebook needs it
_SECONDS_BETWEEN_SAVES = 1.0  # of a running notebook: a killed process loses at most this much
_SECONDS_BETWEEN_REDRAWS = 1.0  # of the progress bar, while a cell runs
_SAVE_SECONDS = 120.0  # for an interrupted training run to finish its step and write a checkpoint
_SETUP_CODE = "__import__('helpers.course').course.skip_teardown()"  # defines no name in the notebook


class CourseError(RuntimeError):
    """A notebook failed, with the error and the executed file in the message, or there are no notebooks."""


def all_notebooks() -> list[Path]:
    """Return all notebooks in order; raise `CourseError` if there are none."""
    notebooks = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:  # a wheel contains only the package
        raise CourseError(
            f"There are no notebooks at {NOTEBOOKS}: an installed wheel has none. Run this in a clone of the project, "
            f"or train without a notebook: `{COMMAND} train`."
        )
    return notebooks


def course_notebooks() -> list[Path]:
    """Return the notebooks that a course run executes by default."""
    return [path for path in all_notebooks() if path.stem < _EXTRA]


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
    """Return the names in a notebook's cell tagged `parameters`, with their values; `...` stands for a computed one.

    Raises:
        SettingsError: it is not a notebook.
    """
    hide_uri_grammar()
    import papermill

    try:
        declared = papermill.inspect_notebook(str(notebook))
    except Exception as error:  # noqa: BLE001 (the libraries raise anything for a damaged or foreign file)
        raise SettingsError(f"{notebook} cannot be read as a notebook ({first_line(error)}).") from None
    return {name: _literal(parameter["default"]) for name, parameter in declared.items()}


def _literal(code: str) -> Any:
    try:
        return ast.literal_eval(code)
    except (ValueError, SyntaxError):
        return ...


def hide_uri_grammar() -> None:
    """Hide rfc3987_syntax before papermill, nbformat or nbclient is imported, which saves 2 s in each process.

    jsonschema imports it where it is installed and builds a grammar to validate URIs, which nothing here needs.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # None makes the import fail


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
        parameters: the user's values; at least one of the notebooks must declare each of them.
        defaults: a preset's values; each goes to the notebooks that declare it.
        progress: show papermill's progress bar, one step per cell.

    Raises:
        SettingsError: no chosen notebook declares one of the parameters, or forgetting would be measured on the
            training text; nothing was run.
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
    if texts.keys() <= known:  # otherwise notebook 04 would refuse it after training
        refuse_training_text(texts["general_source"], source=texts["source"], run=run)
    elif "general_source" in known and (note := describe_new_run(run)):  # notebook 04 says it too late
        warnings.warn(note, stacklevel=2)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for notebook in notebooks:
            own_values = {name: value for name, value in values.items() if name in declared[notebook]}
            _execute(notebook, folder / notebook.name, own_values, progress=progress)
    finally:
        report = write_report(run)
    return report


def _execute(notebook: Path, output: Path, parameters: dict[str, Any], *, progress: bool) -> None:
    hide_uri_grammar()
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    remove_link(output)  # papermill would overwrite its target
    try:
        # The kernel runs in the notebook's folder, where a relative COURSE_RUNS would mean another folder.
        with environment_variables({"COURSE_RUNS": str(runs_folder())}):
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters=parameters,
                engine_name=_register_engine(output.parent.parent),
                kernel_name="python3",
                kernel_manager_class=this_python_kernel_manager(),  # not `km`: only a manager made here is shut down
                cwd=str(notebook.parent),
                progress_bar={"desc": notebook.stem} if progress else False,
                # Otherwise the kernel logs between the progress bars: a warning that it listens on this machine only,
                # and an error if jupyter_client interrupts it for shutdown before its last reply is complete.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL", f"--IPKernelApp.exec_lines={_SETUP_CODE}"],
            )
    except PapermillExecutionError as error:
        raise CourseError(
            f"{notebook.name} failed in cell {error.exec_count}; the executed notebook with its traceback is {output}. "
            f"{error.ename}: {' '.join(printable(error.evalue).split())}"
        ) from None
    except (DeadKernelError, CellTimeoutError) as error:
        raise CourseError(f"{notebook.name} lost its kernel: {error}. What ran is in {output}.") from None


def _register_engine(folder: Path) -> str:
    """Register a papermill engine that saves a notebook at most once per second and at its end; return its name.

    Its progress bar is also redrawn while a cell runs, and shows the training progress of the run in `folder`.

    papermill's own engine saves before and after each cell, Markdown included: 2.5 s of the 19 s of notebook 02.
    """
    from papermill.engines import NBClientEngine, papermill_engines

    class ThrottledEngine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
            save = nb_man.save

            def save_throttled(**kwargs: Any) -> None:
                if (nb_man.now() - nb_man.last_save_time).total_seconds() >= _SECONDS_BETWEEN_SAVES:
                    save(**kwargs)

            nb_man.save = save_throttled
            try:
                with _redrawing(nb_man.pbar, folder):
                    return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)
            finally:
                nb_man.save = save  # papermill's final save must not be skipped

    papermill_engines.register("course", ThrottledEngine)
    return "course"


@contextmanager
def _redrawing(bar: Any, folder: Path) -> Iterator[None]:
    """Redraw a progress bar in a terminal while a cell runs: papermill only does so between cells."""
    ended = threading.Event()

    def redraw() -> None:
        while not ended.wait(_SECONDS_BETWEEN_REDRAWS):
            with suppress(SettingsError, OSError):  # a damaged file: the cell that reads it reports it
                is_trained = (folder / "training.json").exists()
                rows = [] if is_trained else read_json_lines(folder / "history.jsonl")
                losses = [row for row in rows if "loss" in row]
                bar.set_postfix_str(f"step {losses[-1]['step']}, loss {losses[-1]['loss']:.3f}" if losses else "")

    thread = threading.Thread(target=redraw, name="bar", daemon=True)
    if bar is not None and bar.fp.isatty():  # in a file each redraw would add a line
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.is_alive():
            thread.join()


def skip_teardown() -> None:
    """Make this process skip Python's teardown at exit, after the exit functions registered from now on have run.

    Tearing down PyTorch and transformers object by object would take 2 s per kernel.
    """

    def end() -> None:
        weakref.finalize._exitfunc()  # removes temporary folders; if registered earlier, it would not run
        os._exit(0)

    atexit.register(end)


def this_python_kernel_manager() -> type:
    """Return a kernel manager class whose python3 kernel runs in the calling Python.

    Otherwise Jupyter may find a `python3` kernel that another installation left in the user's folders. With no
    folders to search, it uses the `ipykernel` that this Python imports.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager

    class ThisPythonKernelManager(AsyncKernelManager):
        def __init__(self, **traits: Any) -> None:
            super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **traits)

        async def start_kernel(self, **kwargs: Any) -> None:
            # Windows also sends the terminal's Ctrl-C to a kernel. With that of `wait_for_cell` it would get two,
            # and the second one stops training without saving. (Elsewhere a kernel gets its own session.)
            if group := getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0):
                kwargs["creationflags"] = group
            await super().start_kernel(**kwargs)

        async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
            interrupted = isinstance(sys.exc_info()[1], KeyboardInterrupt)  # Ctrl-C or SIGTERM, not sent to the kernel
            if interrupted:
                # The cell's task may raise DeadKernelError after everyone stopped waiting for its result.
                asyncio.get_running_loop().set_exception_handler(_report_unless_kernel_died)
                await self.wait_for_cell()
            # A kernel that is asked to shut down during a cell prints a traceback: after Ctrl-C, kill it instead.
            await super().shutdown_kernel(now=now or interrupted, restart=restart)

        async def wait_for_cell(self) -> None:
            """Interrupt the cell and wait until it ends: training finishes its step and writes a checkpoint."""
            await self.interrupt_kernel()
            client = self.client()
            client.start_channels()
            try:
                with suppress(RuntimeError):  # no answer in time
                    await client.wait_for_ready(timeout=_SAVE_SECONDS)  # answered once the cell has ended
            finally:
                client.stop_channels()

    return ThisPythonKernelManager


def _report_unless_kernel_died(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    from nbclient.exceptions import DeadKernelError

    if not isinstance(context.get("exception"), DeadKernelError):
        loop.default_exception_handler(context)
