"""Small pictures as HTML and SVG: everything escaped, and the colours of the course."""

import math
import re

from helpers.widgets.drawing import Bar, Series, bar_chart, line_chart, stacked_bar


def test_text_is_escaped_and_non_finite_values_are_left_out(markup):
    pictures = (
        line_chart([Series(markup, [(0, 1), (1, math.nan), (2, 3)])] * 2, title=markup, xlabel=markup, ylabel=markup),
        bar_chart([Bar(markup, 0.5, markup)], title=markup),
        stacked_bar([(markup, 1.0, markup)], limit=2.0, limit_text=markup, colour="#000"),
        line_chart([Series("none", [])], title="t", xlabel="x", ylabel="y"),
    )
    assert all("<script" not in text and "<img" not in text and "nan" not in text for text in pictures)


def test_the_length_of_a_bar_is_relative_to_the_longest():
    picture = bar_chart([Bar("a", 0.5, "50%"), Bar("b", 0.25, "25%", outline=0.1, is_drawn=True)], title="shares")
    assert "width:100.0%;background" in picture
    assert "width:50.0%;background" in picture
    assert "width:20.0%;box-sizing:border-box;border:1.5px dashed" in picture
    assert picture.count("drawn</b>") == 1


def test_a_line_of_one_point_is_drawn_as_a_dot_and_named():
    points = [(10, 5.9), (20, math.nan)]
    chart = line_chart(
        [Series("training", points, "#111"), Series("validation", [])], title="Loss:", xlabel="x", ylabel="y"
    )
    assert chart.count("<circle") == 1
    assert "<polyline" not in chart
    assert "Loss: — training" in re.sub("<[^>]+>", "", chart)


def test_text_has_the_colour_of_its_page():
    chart = line_chart([Series("a", [(0, 1), (1, 2)])], title="t", xlabel="x", ylabel="y")
    bar = stacked_bar([("weights", 1.0, "1 GiB")], limit=2.0, limit_text="2 GiB", colour="#000")
    assert "fill:currentColor" in chart
    assert re.sub("<[^>]+>", "", chart) == "t  2 1 0 1 x y ", "its text, where JupyterLab removes the picture"
    assert "solid currentColor" in bar
    assert not any(dark in chart + bar for dark in ("#333", "#fff", "#eee")), "a page may be dark"
