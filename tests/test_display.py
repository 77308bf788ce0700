import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from IPython.lib.pretty import pretty
from tqdm import tqdm

from helpers import display
from helpers.display import (
    Html,
    PlainTextMixin,
    announce,
    html_table,
    html_text,
    predicted_and_measured,
    progress_bar,
)


@pytest.mark.parametrize(
    ("shell", "is_shown"),
    [
        (None, True),  # a terminal
        (SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=True)), True),  # JupyterLab
        (SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=False)), False),  # papermill or nbmake
    ],
)
def test_a_progress_bar_is_shown_only_in_interactive_sessions(monkeypatch, capsys, shell, is_shown):
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr(display, "QUIET_SECONDS", 0)
    with progress_bar(2, unit="token", leave=True) as bar:
        bar.update(2)
        bar.set_postfix_str("done", refresh=False)
    assert ("2/2" in capsys.readouterr().err) is is_shown


def test_announce_prints_only_to_a_terminal(capsys, monkeypatch):
    announce("Reading ...")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    announce("Reading \x1b[2Ja\x07 ...")
    assert capsys.readouterr() == ("", "Reading a  ...\n")


def test_a_progress_bar_ends_complete_unless_an_error_ended_it(monkeypatch):
    ends = []
    monkeypatch.setattr(
        "tqdm.auto.tqdm",
        type("Bar", (tqdm,), {"close": lambda bar: (tqdm.close(bar), ends.append((bar.n, bar.total)))}),
    )
    with progress_bar(5, unit="step") as bar:
        bar.update(4)
    with pytest.raises(ValueError, match="broken"), progress_bar(5, unit="step") as bar:
        bar.update(2)
        raise ValueError("broken")
    assert ends[0] == (4, 4), "a notebook shows a bar below its total in red"
    assert (2, 5) in ends


@pytest.mark.parametrize("leave", [False, True])
def test_the_widget_of_a_bar_is_hidden_instead_of_closed_so_that_a_reloaded_page_finds_it(monkeypatch, leave):
    widget = SimpleNamespace(layout=SimpleNamespace(display="flex"))
    closed = []
    bar_type = type(
        "Bar", (tqdm,), {"container": widget, "close": lambda bar: (closed.append(not bar.leave), tqdm.close(bar))}
    )
    monkeypatch.setattr("tqdm.auto.tqdm", bar_type)
    with progress_bar(1, unit="token", leave=leave) as bar:
        bar.update()
    assert closed[0] is False, "tqdm closes the widget of a bar that it does not leave"
    assert (widget.layout.display == "none") is not leave


def test_text_in_a_table_is_escaped():
    shown = html_table(["<a>"], [["<b>"]], caption="<c>")
    assert not any(tag in shown for tag in ("<a>", "<b>", "<c>"))
    assert all(f"&lt;{name}&gt;" in shown for name in "abc")


def test_the_caption_is_left_aligned():
    assert "<caption style='text-align:left'>all runs</caption>" in html_table([], [], caption="all runs")


def test_numbers_are_right_aligned_and_text_is_left_aligned():
    shown = html_table([], [[1234, 0.123456, None, True, "0.5"]])
    cells = [cell.partition("</td>")[0] for cell in shown.split("<td")[1:]]
    assert [cell.rpartition(">")[2] for cell in cells] == ["1,234", "0.1235", "", "True", "0.5"]
    assert ["right" in cell for cell in cells] == [True, True, False, False, False]


def test_short_text_keeps_its_width_and_long_text_a_minimum_width():
    shown = html_table([], [["samples", "a text of many words", Html("<b>bold</b>")]])
    assert [cell.partition("ch")[0] for cell in shown.split("min-width:")[1:]] == ["7", "16"]


def test_html_is_kept_and_everything_else_is_escaped():
    table = html_table([], [[Html("<b>bold</b>"), "<b>text</b>"]])
    assert "<b>bold</b>" in table
    assert "&lt;b&gt;text&lt;/b&gt;" in table


@dataclass
class _Result(PlainTextMixin):
    values: range

    def _repr_html_(self):
        return "<p><b>3 &lt; 5</b></p><details><summary>all</summary>0, 1, 2</details><ul><li>a note</li></ul>"


def test_a_result_as_text_shows_its_words_instead_of_its_fields():
    assert pretty(_Result(range(3))) == str(_Result(range(3))) == "3 < 5\na note"
    assert repr(_Result(range(3))) == "_Result(values=range(0, 3))"


@dataclass
class _QuotingResult(PlainTextMixin):
    text: str

    def __str__(self):
        """Return the text."""
        return self.text


def test_a_result_that_quotes_a_file_sends_no_escapes_to_the_terminal():
    result = _QuotingResult("a\x1b]0;owned\x07\x1b[2J,\tb\nc\x07")
    assert str(result) == pretty(result) == "a,\tb\nc "
    assert _QuotingResult.__str__.__doc__ == "Return the text."


def test_every_class_with_html_also_has_plain_text():
    package = Path(display.__file__).parent
    classes = [
        node
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and "_repr_html_" in {getattr(part, "name", "") for part in node.body}
    ]
    assert len(classes) > 10
    bases = {node.name: {getattr(base, "id", "") for base in node.bases} for node in classes}
    assert [name for name, of_class in bases.items() if "PlainTextMixin" not in of_class] == []


def test_a_text_table_is_aligned_and_a_wide_one_has_a_line_per_cell():
    long = "a" * 121
    table = html_table(["error", "instead"], [["<b>", 1234], [None, "two\nlines"]], caption="Repairs")
    assert html_text(table) == "Repairs\nerror  instead\n<b>    1,234\n       two lines"
    assert html_text(html_table(["error", "instead"], [[long, 1], ["b", 2]])) == (
        f"error: {long}\ninstead: 1\n\nerror: b\ninstead: 2"
    )
    assert html_text(html_table([], [["text", long]])) == f"text  {long}"


def test_plain_text_puts_marks_in_brackets_and_drops_control_characters():
    assert html_text("<p>read <mark style='x'>and\ncopied</mark>, \x1b[31mred</p>") == "read [and\ncopied], red"


def test_the_predicted_time_is_next_to_the_time_of_the_steps():
    facts = {"steps": 100, "step_seconds": 3.0, "seconds": 900.0, "peak_bytes": 2**30}
    steps, run, memory = predicted_and_measured(facts | {"predicted": {"seconds": [240.0, 360.0], "peak_bytes": None}})
    assert steps == ("time of the steps", "240 s to 360 s", "300 s")
    assert run == ("time of the run", "", "15 min")
    assert memory == ("peak memory", "", "1.0 GiB")
    assert predicted_and_measured({"seconds": 900.0, "peak_bytes": 1})[0] == ("time of the steps", "", "")
