import base64
import json
import re

import nbformat
import pytest

from helpers.report import write_report
from tests.studies.recorded_runs import evaluation

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def folder(runs):
    """Return the folder of a run's executed notebooks."""
    (runs / "mine/notebooks").mkdir(parents=True)
    return runs / "mine/notebooks"


def write(path, *cells):
    """Write a notebook with these cells; a string becomes a Markdown cell."""
    cells = [nbformat.v4.new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def test_notebook_links_lead_to_sections_of_the_page_and_every_picture_has_alt_text(folder):
    picture = nbformat.v4.new_output(
        "display_data", data={"image/png": "iVBORw0KGgo="}, metadata={"image/png": {"alt": "Loss falls"}}
    )
    bare = nbformat.v4.new_output("display_data", data={"image/png": "iVBORw0KGgo="})
    prose = "# 1. First\n\nNext: [2. Second](02_b.ipynb), then [3. Third](03_c.ipynb)."
    write(folder / "01_a.ipynb", prose, nbformat.v4.new_code_cell("draw()", outputs=[picture, bare]))
    write(folder / "02_b.ipynb")
    page = write_report("mine").read_text(encoding="utf-8")
    assert '<a href="#01_a">1. First</a>' in page
    assert ".ipynb" not in page
    links, ids = re.findall(r'href="#([^"]+)"', page), re.findall(r'id="([^"]+)"', page)
    assert "02_b" in links
    assert set(links) <= set(ids)
    assert re.findall(r'<img[^>]*alt="([^"]*)"', page) == ["Loss falls", "A picture of the section: 1. First"]


@pytest.mark.parametrize(
    "content", [b"", b'{"cells": [{"source": "\xc3', b"{}", b"[]", b'{"nbformat": 4, "metadata": {}}']
)
def test_an_invalid_or_truncated_notebook_is_left_out_of_the_report(folder, content):
    write(folder / "01_a.ipynb", "# 1. First")
    (folder / "02_b.ipynb").write_bytes(content)
    page = write_report("mine").read_text(encoding="utf-8")
    assert "1. First" in page
    assert "02_b" not in page


def test_equations_become_pictures_and_dollars_in_code_stay(folder):
    source = r"The loss $L$ is $$L = -\frac{1}{N}\sum_t \ln p_t$$ and $\nothing$; type `echo $HOME $PATH`."
    write(folder / "01_a.ipynb", source)
    page = write_report("mine").read_text(encoding="utf-8")
    assert page.count('class="equation"') == 2
    assert r'alt="L = -\frac{1}{N}\sum_t \ln p_t"' in page
    assert "echo $HOME $PATH" in page
    assert r"$\nothing$" in page, "an equation that cannot be drawn stays as text"


def test_a_fraction_is_larger_in_a_display_equation_than_inline(folder):
    write(folder / "01_a.ipynb", r"$\frac{1}{N}$", r"$$\frac{1}{N}$$")
    pictures = re.findall(r"svg\+xml;base64,([^\"]+)", write_report("mine").read_text(encoding="utf-8"))
    in_line, alone = (re.search(r'height="([\d.]+)pt"', base64.b64decode(each).decode())[1] for each in pictures)
    assert float(alone) > 1.2 * float(in_line)


def test_the_report_starts_with_the_results_of_the_run(folder):
    run = folder.parent
    content = evaluation(25.61, "a" * 64, 256, "mine")
    content["test"] |= {"verdict": "Better <b>.", "base": content["test"]["base"] | {"perplexity": None}}
    decodings = [{"decoding": "greedy", "sample": "A"}, {"decoding": "these settings", "sample": "<i>The Fox"}]
    content["speech"] = {"settings": {}, "before": "Return the Fox", "decodings": decodings}
    (run / "evaluation.json").write_text(json.dumps(content))
    measured = {"steps": 177, "tokens": 180_480, "seconds": 140.0, "precision": "float32", "device": "cpu"}
    measured |= {"step_seconds": 0.75, "peak_bytes": 2**29}
    predicted = {"seconds": [100.0, 200.0], "peak_bytes": None}
    (run / "training.json").write_text(json.dumps(measured | {"predicted": predicted}))
    (run / "history.jsonl").write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4.0}\n')
    page = write_report("mine").read_text(encoding="utf-8")
    summary = page[page.index("<h1>") : page.index("<nav>")]
    assert "Better &lt;b&gt;." in summary
    assert "25.61" in summary
    assert "too large" in summary
    assert summary.index("Return the Fox") < summary.index("&lt;i&gt;The Fox")
    assert "<td>100 s to 200 s</td><td>133 s</td>" in summary
    assert "<td>not predicted</td><td>140 s</td>" in summary
    assert "<td>not predicted</td><td>512 MiB</td>" in summary
    assert re.search(r'<img alt="[^"]*optimizer step[^"]*" src="data:image/png', summary)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", "{"),
        ("evaluation.json", '{"version": 1, "test": {"base": []}}'),
        ("training.json", '{"steps": 3}'),
        ("training.json", '{"tokens": 4096, "seconds": 75.0, "peak_bytes": 3000000}'),
        ("training.json", '{"seconds": "long", "peak_bytes": 3000000}'),
        ("history.jsonl", '{"step": 1, "loss": "low"}'),
    ],
)
def test_damaged_or_partial_records_do_not_stop_the_report(folder, name, content):
    (folder.parent / name).write_text(content)
    page = write_report("mine").read_text(encoding="utf-8")
    assert "<h1>Course report: mine</h1>" in page
    assert ("75 s" in page) == ("75.0" in content)


def test_a_truncated_history_leaves_the_curve_out(folder):
    (folder.parent / "history.jsonl").write_text('{"step": 1, "loss": 3.5}\n{"step": 2, "lo')
    assert "data:image/png" not in write_report("mine").read_text(encoding="utf-8")
