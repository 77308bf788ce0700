from types import SimpleNamespace

import pytest
from tqdm import tqdm

from helpers import display
from helpers.display import Html, html_table, progress_bar


@pytest.mark.parametrize(
    ("shell", "is_shown"),
    [
        (None, True),  # a terminal
        (SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=True)), True),  # JupyterLab
        (SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=False)), False),  # papermill or nbmake
    ],
)
def test_a_progress_bar_is_for_those_who_watch(monkeypatch, capsys, shell, is_shown):
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr(display, "QUIET_SECONDS", 0)
    with progress_bar(2, unit="token", leave=True) as bar:
        bar.update(2)
        bar.set_postfix_str("done", refresh=False)
    assert ("2/2" in capsys.readouterr().err) is is_shown


def test_a_bar_is_complete_at_its_end_unless_an_error_ended_it(monkeypatch):
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
    assert ends[0] == (4, 4), "a notebook keeps a bar below its total, in red"
    assert (2, 5) in ends


def test_all_text_is_escaped():
    shown = html_table(["<a>"], [["<b>"]], caption="<c>")
    assert not any(tag in shown for tag in ("<a>", "<b>", "<c>"))
    assert all(f"&lt;{name}&gt;" in shown for name in "abc")


def test_the_caption_is_where_a_wide_table_begins():
    assert "<caption style='text-align:left'>all runs</caption>" in html_table([], [], caption="all runs")


def test_numbers_stand_on_the_right_and_text_on_the_left():
    shown = html_table([], [[1234, 0.123456, None, True, "0.5"]])
    cells = [cell.partition("</td>")[0] for cell in shown.split("<td")[1:]]
    assert [cell.rpartition(">")[2] for cell in cells] == ["1,234", "0.1235", "", "True", "0.5"]
    assert ["right" in cell for cell in cells] == [True, True, False, False, False]


def test_a_narrow_page_leaves_short_text_whole_and_long_text_some_letters():
    shown = html_table([], [["samples", "a text of many words", Html("<b>bold</b>")]])
    assert [cell.partition("ch")[0] for cell in shown.split("min-width:")[1:]] == ["7", "16"]


def test_html_is_taken_as_it_is_and_everything_else_is_escaped():
    table = html_table([], [[Html("<b>bold</b>"), "<b>text</b>"]])
    assert "<b>bold</b>" in table
    assert "&lt;b&gt;text&lt;/b&gt;" in table
