"""Run the notebooks through papermill, in order, into a run's folder, and join them in one report page."""

import html
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.display import did_you_mean
from helpers.settings import NOTEBOOKS, SettingsError, known_settings, run_folder

_PAGE_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
pre { white-space: pre-wrap; padding: .6rem; background: #8881; font-size: 13px }
img { max-width: 100%; background: white } table { border-collapse: collapse } td, th { padding: .2rem .6rem }
.jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser, .anchor-link, .prompt { display: none }
section { border-top: 2px solid #8886; margin-top: 3rem }
"""


class CourseError(RuntimeError):
    """A notebook that did not run to its end; the message names notebook, error and the executed file."""


def all_notebooks() -> list[Path]:
    """Return the course's notebooks in their order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def find_notebook(name: str) -> Path:
    """Return the notebook that '03', '03_fine_tuning' or a path names; raise `SettingsError` for none."""
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
        progress: show papermill's progress bar, a step a cell.

    Returns:
        The path of `report.html`.

    Raises:
        SettingsError: a parameter that no chosen notebook has; nothing was run.
        CourseError: a notebook failed; it was saved with its traceback, and the report holds what ran.
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
            mine = {name: value for name, value in values.items() if name in declared[notebook]}
            _execute(notebook, folder / notebook.name, mine, progress=progress)
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
        papermill.execute_notebook(
            str(notebook),
            str(output),
            parameters=parameters,
            kernel_name="python3",
            kernel_manager_class=_kernel_of_this_python(),  # a class, not `km`: papermill ends what it made
            cwd=str(notebook.parent),
            progress_bar={"desc": notebook.stem} if progress else False,
            # the kernel listens on this machine alone; its warning about that would stand between the progress bars
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
    except PapermillExecutionError as error:
        raise CourseError(
            f"{notebook.name} failed in cell {error.exec_count}: {error.ename}: {_sentence(error.evalue)} "
            f"The executed notebook with its traceback is {output}."
        ) from None
    except (DeadKernelError, CellTimeoutError) as error:
        raise CourseError(f"{notebook.name} lost its kernel: {error}. What ran is in {output}.") from None


def _kernel_of_this_python() -> type:
    """Return a manager whose python3 kernel is this very Python.

    A `python3` kernel that another installation left in the user's folders may come first where Jupyter looks. With
    no folders to look in, Jupyter takes the kernel of the `ipykernel` that this Python imports.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager

    class KernelOfThisPython(AsyncKernelManager):
        def __init__(self, **traits: Any) -> None:
            super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **traits)

        async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
            # asked to end amid a cell, a kernel prints a traceback of its own: after Ctrl-C it is ended at once
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
    """Join a run's executed notebooks in one page that needs no network; return its path."""
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    folder = run_folder(run) / "notebooks"
    exporter = HTMLExporter(template_name="basic")
    links, sections = [], []
    for path in sorted(folder.glob("*.ipynb")):
        body, _ = exporter.from_notebook_node(_without_widgets(nbformat.read(path, as_version=4)))
        name = html.escape(path.stem)
        links.append(f'<li><a href="#{name}">{name}</a></li>')
        sections.append(f'<section id="{name}">{body}</section>')
    title = f"Course report: {html.escape(run)}"
    style = HtmlFormatter(style="default").get_style_defs(".highlight") + _PAGE_STYLE
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
        f"<h1>{title}</h1><ol>{''.join(links)}</ol>{''.join(sections)}</html>"
    )
    report = folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def _without_widgets(notebook: Any) -> Any:
    """Take widgets and scripts out of an executed notebook: on a page without a kernel nothing answers them.

    What a panel shows instead stands beside it as plain HTML, and stays.
    """
    notebook.metadata.pop("widgets", None)
    dead = {"application/vnd.jupyter.widget-view+json", "application/javascript"}
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not dead & set(output.get("data", {}))]
    return notebook
