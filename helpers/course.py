"""Run the notebooks in order with papermill, into a run's folder, and join them in one report page."""

import asyncio
import atexit
import html
import os
import re
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from helpers.display import did_you_mean, duration_text, first_line, size_text
from helpers.files import environment_variables, read_json, read_json_lines
from helpers.paths import ASSETS, NOTEBOOKS, runs_folder
from helpers.settings import SettingsError, known_settings, run_folder

_NEXT = "06"  # the first notebook that is not in the course itself: it trains for minutes, and nothing needs it
_SECONDS_BETWEEN_SAVES = 1.0  # of a notebook that is executed: what a killed process may lose
_SAVE_SECONDS = 120.0  # for the step and the checkpoint of a training that is interrupted
_BEFORE_THE_CELLS = "__import__('helpers.course').course.end_at_once()"  # leaves no name that a notebook could use
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_CODE = re.compile(r"(```.*?```|`[^`]*`)", re.DOTALL)
_EQUATION = re.compile(r"(\$\$?)([^$]+)\1")
_NOTEBOOK_LINK = re.compile(r"\[([^\]]+)\]\((\w+)\.ipynb\)")


class CourseError(RuntimeError):
    """A notebook that failed; the message names the notebook, the error and the executed file."""


def all_notebooks() -> list[Path]:
    """Return every notebook in its order; raise `CourseError` where there are none."""
    notebooks = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:  # a wheel brings the package alone
        raise CourseError(
            f"There are no notebooks at {NOTEBOOKS}: an installed wheel has none. Run this in a clone of the project, "
            "or train without a notebook: `python -m helpers train`."
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
    raise SettingsError(f"There is no notebook {name!r}{did_you_mean(name, known, cutoff=0.3)}")


def declared_parameters(notebook: Path) -> set[str]:
    """Return the names in a notebook's cell tagged `parameters`; raise `SettingsError` if it is no notebook."""
    try:
        return set(_papermill().inspect_notebook(str(notebook)))
    except Exception as error:  # noqa: BLE001 (the libraries raise anything for a file that is none, or is cut short)
        raise SettingsError(f"{notebook} cannot be read as a notebook ({first_line(error)}).") from None


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
                engine_name=_register_engine(),
                kernel_name="python3",
                kernel_manager_class=kernel_of_this_python(),  # a class, not `km`: papermill shuts down what it made
                cwd=str(notebook.parent),
                progress_bar={"desc": notebook.stem} if progress else False,
                # The kernel listens on this machine only. It warns about that, in the middle of the progress bars.
                extra_arguments=["--IPKernelApp.log_level=ERROR", f"--IPKernelApp.exec_lines={_BEFORE_THE_CELLS}"],
            )
    except PapermillExecutionError as error:
        raise CourseError(
            f"{notebook.name} failed in cell {error.exec_count}: {error.ename}: {_sentence(error.evalue)} "
            f"The executed notebook with its traceback is {output}."
        ) from None
    except (DeadKernelError, CellTimeoutError) as error:
        raise CourseError(f"{notebook.name} lost its kernel: {error}. What ran is in {output}.") from None


def _register_engine() -> str:
    """Register an engine for papermill that saves a notebook at most once a second, and at its end; return its name.

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
                return super().execute_managed_notebook(nb_man, kernel_name, **how)
            finally:
                nb_man.save = save  # papermill then saves all of it, whatever has happened

    papermill_engines.register("course", SavesSeldom)
    return "course"


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
    line = " ".join(message.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."


def write_report(run: str) -> Path:
    """Join a run's executed notebooks into one HTML page that needs no network; return its path.

    The page begins with a summary: verdict, before and after, samples, curve, predicted and measured time and memory.
    """
    with without_address_grammar():
        import nbformat
        from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    folder = run_folder(run) / "notebooks"
    parts = {}
    for path in sorted(folder.glob("*.ipynb")):
        with suppress(nbformat.reader.NotJSONError, UnicodeDecodeError):  # a full disk has cut this one short
            parts[html.escape(path.stem)] = nbformat.read(path, as_version=4)
    page = nbformat.v4.new_notebook()
    for name, notebook in parts.items():
        if "language_info" in notebook.metadata:  # which the kernel writes, if it lives; it names the highlighter
            page.metadata.language_info = notebook.metadata.language_info
        page.cells += [nbformat.v4.new_markdown_cell(f'<section id="{name}"></section>'), *_page_cells(notebook, parts)]
    for number, cell in enumerate(page.cells):
        cell.id = f"cell-{number}"  # notebooks of different formats have ids or not, and two may have the same
    exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(ASSETS / "templates")])
    resources = {
        "metadata": {"name": f"Course report: {run}"},
        "contents": {name: _title(notebook) or name for name, notebook in parts.items()},
        "summary": _summarise(run),
        "dark_css": HtmlFormatter(style="github-dark").get_style_defs(".highlight"),
    }
    body, _ = exporter.from_notebook_node(page, resources=resources)
    report = folder / "report.html"
    report.write_text(body, encoding="utf-8")
    return report


def _title(notebook: Any) -> str:
    """Return a notebook's first heading."""
    headings = (_HEADING.search(cell.source) for cell in notebook.cells if cell.cell_type == "markdown")
    return next((heading.group(1) for heading in headings if heading), "")


def _page_cells(notebook: Any, parts: Mapping[str, Any]) -> list[Any]:
    """Return a notebook's cells for the page.

    Without widgets and scripts, which would do nothing on a page without a kernel: each panel also shows a plain HTML
    summary, which stays. Links to other notebooks lead to their sections, equations become pictures, and each picture
    has an alternative text.
    """
    dead = {"application/vnd.jupyter.widget-view+json", "application/javascript"}
    heading = "the beginning"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = _HEADING.findall(cell.source)
            heading = headings[-1] if headings else heading
            cell.source = _NOTEBOOK_LINK.sub(
                lambda link: f"[{link[1]}](#{link[2]})" if link[2] in parts else link[1], cell.source
            )
            texts = _CODE.split(cell.source)  # every second one is code, whose dollars are no equations
            texts[::2] = [_EQUATION.sub(_draw_equation, text) for text in texts[::2]]
            cell.source = "".join(texts)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not dead & set(output.get("data", {}))]
            for output in cell.outputs:
                for kind in {"image/png", "image/jpeg"} & set(output.get("data", {})):
                    output.metadata.setdefault(kind, {}).setdefault("alt", f"A picture of the section: {heading}")
    return notebook.cells


def _draw_equation(tex: re.Match) -> str:
    """Return an equation as a picture, with its TeX as alternative text; unchanged where matplotlib cannot draw it."""
    import base64
    import io

    from matplotlib.mathtext import math_to_image

    source, buffer = " ".join(tex[2].split()), io.BytesIO()
    try:
        math_to_image(f"${source}$", buffer, format="svg")
    except ValueError:
        return tex[0]
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="equation" alt="{html.escape(source)}" src="data:image/svg+xml;base64,{data}">'


def _summarise(run: str) -> dict[str, Any]:
    """Return what the page says first, as far as the run has got: empty parts are left out."""
    folder = run_folder(run)
    training, evaluation = (_read_if_there(folder / name) for name in ("training.json", "evaluation.json"))
    rows = read_json_lines(folder / "history.jsonl")
    speech = evaluation.get("speech") or {"decodings": []}
    after = [row["sample"] for row in speech["decodings"] if row["decoding"] == "these settings"]
    return {
        "test": evaluation.get("test"),
        "forgetting": evaluation.get("forgetting"),
        "samples": {"before": speech.get("before"), "after": after[0]} if after else {},
        "curve": _draw(rows) if rows else None,
        "training": training,
        "resources": _compare_resources(training) if training else [],
    }


def _read_if_there(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, SettingsError):  # not there yet; the page of an interrupted run shows what there is
        return {}


def _compare_resources(training: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return rows of what was predicted and measured: time and peak memory."""
    predicted = training.get("predicted") or {}
    seconds, peak = predicted.get("seconds"), predicted.get("peak_bytes")
    return [
        ("time", " to ".join(map(duration_text, seconds)) if seconds else "", duration_text(training["seconds"])),
        ("peak memory", size_text(peak) if peak else "", size_text(training["peak_bytes"])),
    ]


def _draw(history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the loss curve as a PNG in base64, and its alternative text."""
    import base64
    import io

    import matplotlib.pyplot as plt

    from helpers.plots import describe, open_no_windows, plot_history

    open_no_windows()
    figure, buffer = plot_history(history).figure, io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    return {"png": base64.b64encode(buffer.getvalue()).decode(), "alt": describe(figure)}
