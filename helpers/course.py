"""Run the notebooks in order with papermill, into a run's folder, and join them in one report page."""

import html
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.display import did_you_mean
from helpers.files import environment_variables
from helpers.settings import ASSETS, NOTEBOOKS, SettingsError, known_settings, run_folder, runs_folder


class CourseError(RuntimeError):
    """A notebook that failed; the message names the notebook, the error and the executed file."""


def all_notebooks() -> list[Path]:
    """Return the course's notebooks in their order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def find_notebook(name: str) -> Path:
    """Return the notebook named '03', '03_fine_tuning' or by its path; raise `SettingsError` if there is none."""
    if Path(name).suffix == ".ipynb" and Path(name).exists():
        return Path(name)
    known = {path.stem: path for path in all_notebooks()}
    for stem, path in known.items():
        if name in (stem, stem[:2], path.name):
            return path
    raise SettingsError(f"There is no notebook {name!r}{did_you_mean(name, known, cutoff=0.3)}")


def declared_parameters(notebook: Path) -> set[str]:
    """Return the names in a notebook's cell tagged `parameters`."""
    import papermill

    return set(papermill.inspect_notebook(str(notebook)))


def run_course(
    notebooks: Sequence[Path],
    *,
    run: str,
    parameters: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Path:
    """Execute notebooks in order into `runs/<run>/notebooks/`, then write the report.

    Args:
        notebooks: their paths.
        run: the run's name; every notebook gets it.
        parameters: what the user asked for; each must be declared by one of the notebooks.
        defaults: a preset's values; each goes to the notebooks that declare it.
        progress: show papermill's progress bar, one step per cell.

    Returns:
        The path of `report.html`.

    Raises:
        SettingsError: no chosen notebook has one of the parameters; nothing was run.
        CourseError: a notebook failed; it was saved with its traceback, and the report shows what ran.
    """
    folder = run_folder(run) / "notebooks"
    declared = {notebook: declared_parameters(notebook) for notebook in notebooks}
    for name in parameters:
        if not any(name in names for names in declared.values()):
            _refuse(name, set().union(*declared.values()))
    values = {**(defaults or {}), **parameters, "run": run}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for notebook in notebooks:
            its_own = {name: value for name, value in values.items() if name in declared[notebook]}
            _execute(notebook, folder / notebook.name, its_own, progress=progress)
    finally:
        report = write_report(run)
    return report


def _refuse(name: str, declared: set[str]) -> None:
    hint = did_you_mean(name, declared or known_settings())
    raise SettingsError(f"None of the chosen notebooks has a parameter {name!r}{hint}")


def _execute(notebook: Path, output: Path, parameters: dict[str, Any], *, progress: bool) -> None:
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        # The kernel works in the notebook's folder, where a relative COURSE_RUNS would be another folder.
        with environment_variables({"COURSE_RUNS": str(runs_folder())}):
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters=parameters,
                kernel_name="python3",
                kernel_manager_class=kernel_of_this_python(),  # a class, not `km`: papermill shuts down what it made
                cwd=str(notebook.parent),
                progress_bar={"desc": notebook.stem} if progress else False,
                # The kernel listens on this machine only. It warns about that, in the middle of the progress bars.
                extra_arguments=["--IPKernelApp.log_level=ERROR"],
            )
    except PapermillExecutionError as error:
        raise CourseError(
            f"{notebook.name} failed in cell {error.exec_count}: {error.ename}: {_sentence(error.evalue)} "
            f"The executed notebook with its traceback is {output}."
        ) from None
    except (DeadKernelError, CellTimeoutError) as error:
        raise CourseError(f"{notebook.name} lost its kernel: {error}. What ran is in {output}.") from None


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

        async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
            # A kernel that is shut down in the middle of a cell prints a traceback: after Ctrl-C, kill it at once.
            interrupted = isinstance(sys.exc_info()[1], KeyboardInterrupt)
            await super().shutdown_kernel(now=now or interrupted, restart=restart)

    return KernelOfThisPython


def _sentence(message: str) -> str:
    r"""Return an error's message on one line, with a full stop.

    >>> _sentence("expected 3\n  but got 4")
    'expected 3 but got 4.'
    """
    line = " ".join(message.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."


def write_report(run: str) -> Path:
    """Join a run's executed notebooks into one HTML page that needs no network; return its path."""
    import nbformat
    from nbconvert import HTMLExporter

    folder = run_folder(run) / "notebooks"
    parts = {html.escape(path.stem): nbformat.read(path, as_version=4) for path in sorted(folder.glob("*.ipynb"))}
    title = f"Course report: {run}"
    links = "\n".join(f"1. [{name}](#{name})" for name in parts)
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {title}\n\n{links}")])
    for name, notebook in parts.items():
        if "language_info" in notebook.metadata:  # which the kernel writes, if it lives; it names the highlighter
            page.metadata.language_info = notebook.metadata.language_info
        page.cells += [nbformat.v4.new_markdown_cell(f'<section id="{name}"></section>'), *_without_widgets(notebook)]
    for number, cell in enumerate(page.cells):
        cell.id = f"cell-{number}"  # notebooks of different formats have ids or not, and two may have the same
    exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(ASSETS / "templates")])
    body, _ = exporter.from_notebook_node(page, resources={"metadata": {"name": title}})
    report = folder / "report.html"
    report.write_text(body, encoding="utf-8")
    return report


def _without_widgets(notebook: Any) -> list[Any]:
    """Return a notebook's cells without widgets and scripts, which would do nothing on a page without a kernel.

    Each panel also shows a plain HTML summary, which stays.
    """
    dead = {"application/vnd.jupyter.widget-view+json", "application/javascript"}
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not dead & set(output.get("data", {}))]
    return notebook.cells
