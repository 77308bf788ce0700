"""The report page: a run's executed notebooks, joined into one HTML page that begins with the run's results."""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from helpers.display import predicted_and_measured
from helpers.files import read_json_lines, read_json_or_empty, write_atomically
from helpers.paths import ASSETS
from helpers.settings import SettingsError, run_folder

_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_CODE = re.compile(r"(```.*?```|`[^`]*`)", re.DOTALL)
_EQUATION = re.compile(r"(\$\$?)([^$]+)\1")
_NOTEBOOK_LINK = re.compile(r"\[([^\]]+)\]\((\w+)\.ipynb\)")


def write_report(run: str) -> Path:
    """Join a run's executed notebooks into one HTML page that needs no network; return its path.

    The page begins with a summary: verdict, before and after, samples, curve, predicted and measured time and memory.
    """
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    folder = run_folder(run) / "notebooks"
    parts = {}
    for path in sorted(folder.glob("*.ipynb")):
        with suppress(Exception):  # truncated by a full disk, or not a notebook: nbformat raises anything
            parts[html.escape(path.stem)] = nbformat.read(path, as_version=4)
    page = nbformat.v4.new_notebook()
    for name, notebook in parts.items():
        if "language_info" in notebook.metadata:  # the kernel writes it, if it survives; it names the highlighter
            page.metadata.language_info = notebook.metadata.language_info
        page.cells += [nbformat.v4.new_markdown_cell(f'<section id="{name}"></section>'), *_page_cells(notebook, parts)]
    for number, cell in enumerate(page.cells):
        cell.id = f"cell-{number}"  # notebooks in an older format have no ids, and two notebooks may share one
    exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(ASSETS / "templates")])
    resources = {
        "metadata": {"name": f"Course report: {run}"},
        "contents": {name: _title(notebook) or name for name, notebook in parts.items()},
        "summary": _summarise(run),
        "dark_css": HtmlFormatter(style="github-dark").get_style_defs(".highlight"),
    }
    body, _ = exporter.from_notebook_node(page, resources=resources)
    report = folder / "report.html"
    write_atomically(report, body)
    return report


def _title(notebook: Any) -> str:
    """Return a notebook's first heading."""
    headings = (_HEADING.search(cell.source) for cell in notebook.cells if cell.cell_type == "markdown")
    return next((heading.group(1) for heading in headings if heading), "")


def _page_cells(notebook: Any, parts: Mapping[str, Any]) -> list[Any]:
    """Return a notebook's cells, adapted to the page.

    Widgets and scripts are removed, because they do nothing without a kernel; the plain HTML summary that each panel
    also shows stays. Links to other notebooks lead to their sections, equations become pictures, and each picture gets
    an alternative text.
    """
    kernel_only = {"application/vnd.jupyter.widget-view+json", "application/javascript"}
    heading = "the beginning"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = _HEADING.findall(cell.source)
            heading = headings[-1] if headings else heading
            cell.source = _NOTEBOOK_LINK.sub(
                lambda link: f"[{link[1]}](#{link[2]})" if link[2] in parts else link[1], cell.source
            )
            texts = _CODE.split(cell.source)  # every second part is code, where $ marks no equation
            texts[::2] = [_EQUATION.sub(_draw_equation, text) for text in texts[::2]]
            cell.source = "".join(texts)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not kernel_only & set(output.get("data", {}))]
            for output in cell.outputs:
                for kind in {"image/png", "image/jpeg"} & set(output.get("data", {})):
                    output.metadata.setdefault(kind, {}).setdefault("alt", f"A picture of the section: {heading}")
    return notebook.cells


def _draw_equation(tex: re.Match) -> str:
    """Return an equation as a picture, with its TeX as alternative text; unchanged where matplotlib cannot draw it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    source, buffer = " ".join(tex[2].split()), io.BytesIO()
    # TeX makes the fractions of a displayed equation large; matplotlib does so only for \dfrac
    drawn = source.replace(r"\frac", r"\dfrac") if tex[1] == "$$" else source
    try:
        depth = math_to_image(f"${drawn}$", buffer, format="svg", prop=FontProperties(size=12))  # below baseline, pt
    except ValueError:
        return tex[0]
    data = base64.b64encode(buffer.getvalue()).decode()
    style = f"vertical-align:-{depth:g}pt"
    return f'<img class="equation" style="{style}" alt="{html.escape(source)}" src="data:image/svg+xml;base64,{data}">'


def _summarise(run: str) -> dict[str, Any]:
    """Return the values of the page's summary; what the run has not reached is empty, and the page leaves it out."""
    folder = run_folder(run)
    training, evaluation = (read_json_or_empty(folder / name) for name in ("training.json", "evaluation.json"))
    rows = []
    with suppress(SettingsError):  # truncated by a full disk: show the rest, and do not hide the original error
        rows = read_json_lines(folder / "history.jsonl")
    speech = evaluation.get("speech") or {"decodings": []}
    after = [row["sample"] for row in speech["decodings"] if row["decoding"] == "these settings"]
    return {
        "test": evaluation.get("test"),
        "forgetting": evaluation.get("forgetting"),
        "samples": {"before": speech.get("before"), "after": after[0]} if after else {},
        "curve": _draw(rows) if rows else None,
        "training": training if {"steps", "tokens", "precision", "device"} <= training.keys() else {},
        "resources": predicted_and_measured(training) if {"seconds", "peak_bytes"} <= training.keys() else [],
    }


def _draw(history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the loss curve as a base64 PNG, and its alternative text."""
    from helpers.plots import describe, open_no_windows, plot_history, png_of

    open_no_windows()
    figure = plot_history(history).figure
    return {"png": png_of(figure), "alt": describe(figure)}
