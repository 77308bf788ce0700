"""Small charts as HTML and SVG: made in a millisecond, sharp at any size, readable in a light and a dark theme.

They are redrawn at each step of a slider, for which matplotlib is too slow. Meaning is never carried by colour alone:
there is always a text or a pattern too. These functions escape every text that they are given.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from helpers.display import BLUE

# JupyterLab's colours, which follow its theme; a page without JupyterLab uses the colour after the comma.
_INK, _LINE = "currentColor", "var(--jp-border-color1,#999)"
_PATTERNS = (
    "none",
    "repeating-linear-gradient(45deg,#fff6 0 2px,#0000 2px 7px)",
    "repeating-linear-gradient(-45deg,#0005 0 2px,#0000 2px 7px)",
    "repeating-linear-gradient(90deg,#fff6 0 2px,#0000 2px 6px)",
    "radial-gradient(#0007 1.5px,#0000 2px) 0 0/7px 7px",
    "repeating-linear-gradient(0deg,#fff6 0 2px,#0000 2px 6px)",
    "radial-gradient(#fff9 1.5px,#0000 2px) 0 0/7px 7px",
)


class Series(NamedTuple):
    """One line of a chart: its name, its points (x, y), its colour, and its dashes in SVG's notation."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = BLUE
    dashes: str = ""


class Bar(NamedTuple):
    """One bar: its name, the length of the filled bar (0 to 1), the text after it, and the length of its outline."""

    name: str
    share: float
    text: str
    outline: float = 0.0
    is_drawn: bool = False  # marks the candidate that was sampled


def line_chart(series: Sequence[Series], *, title: str, xlabel: str, ylabel: str, width: int = 420) -> str:
    """Draw lines over a common horizontal axis; series without points are left out."""
    lines = [line for line in series if line.points]
    xs = [x for line in lines for x, _ in line.points] or [0, 1]
    # A diverging run logs NaN and infinite losses: leave them out and draw the rest.
    ys = [y for line in lines for _, y in line.points if math.isfinite(y)] or [0, 1]
    left, top, right, bottom = 62, 24, width - 10, 142
    x0, x1 = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y0, y1 = (min(ys), max(ys)) if max(ys) > min(ys) else (min(ys) - 1, max(ys) + 1)

    def pixel(x: float, y: float) -> tuple[str, str]:
        right_share, up_share = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)
        return f"{left + right_share * (right - left):.1f}", f"{bottom - up_share * (bottom - top):.1f}"

    def draw(line: Series) -> str:
        pixels = [pixel(x, y) for x, y in line.points if math.isfinite(y)]
        if len(pixels) == 1:  # a line would be invisible; a short run is validated only once
            return f"<circle cx='{pixels[0][0]}' cy='{pixels[0][1]}' r='3' fill='{line.colour}'/>"
        return (
            f"<polyline fill='none' stroke='{line.colour}' stroke-width='2' stroke-dasharray='{line.dashes}' "
            f"points='{' '.join(map(','.join, pixels))}'/>"
        )

    legend = " ".join(
        f"<tspan fill='{line.colour}' font-weight='bold'>{'- -' if line.dashes else '—'}</tspan> "
        f"{html.escape(line.name)}"
        for line in lines
    )
    labels = [
        (left, 14, "start", f"{html.escape(title)} {legend if len(series) > 1 else ''}"),
        (left - 5, top + 4, "end", f"{y1:.3g}"),
        (left - 5, bottom, "end", f"{y0:.3g}"),
        (left, bottom + 15, "start", f"{x0:,.0f}"),
        (right, bottom + 15, "end", f"{x1:,.0f}"),
        ((left + right) / 2, bottom + 15, "middle", html.escape(xlabel)),
    ]
    # the spaces separate the texts, which are all that JupyterLab keeps of a picture in an untrusted notebook
    texts = " ".join(f"<text x='{x}' y='{y}' text-anchor='{anchor}'>{text}</text>" for x, y, anchor, text in labels)
    drawn, middle = "".join(map(draw, lines)), (top + bottom) / 2
    rotated = f"x='12' y='{middle}' text-anchor='middle' transform='rotate(-90 12 {middle})'"
    texts += f" <text {rotated}>{html.escape(ylabel)}</text> "
    return (
        f"<svg role='img' aria-label='{html.escape(title)}' viewBox='0 0 {width} 162' "
        f"style='width:100%;max-width:{width}px;font-size:11px;fill:{_INK}'>"
        f"<path d='M{left} {top}V{bottom}H{right}' fill='none' stroke='{_LINE}'/>{drawn}{texts}</svg>"
    )


def bar_chart(bars: Sequence[Bar], *, title: str, colour: str = BLUE) -> str:
    """Draw named shares, 0 to 1, as horizontal bars scaled to the longest; an outline shows a second share."""
    longest = max([1e-9, *(max(bar.share, bar.outline) for bar in bars)])
    rows = "".join(_bar_row(bar, longest, colour) for bar in bars)
    return (
        "<table style='width:100%;border-collapse:collapse'>"
        f"<caption style='text-align:left'>{html.escape(title)}</caption><tbody>{rows}</tbody></table>"
    )


def _bar_row(bar: Bar, longest: float, colour: str) -> str:
    border = f"border:1.5px dashed {_INK}" if bar.outline else ""
    mark = " <b>&#9664; drawn</b>" if bar.is_drawn else ""
    return (
        "<tr><td style='text-align:right;padding-right:.5em;white-space:pre;max-width:11em;overflow:hidden'>"
        f"{html.escape(bar.name)}</td>"
        "<td style='width:50%'><div style='position:relative;height:1em'>"
        f"<div style='position:absolute;height:100%;width:{100 * bar.share / longest:.1f}%;background:{colour}'></div>"
        f"<div style='position:absolute;height:100%;width:{100 * bar.outline / longest:.1f}%;"
        f"box-sizing:border-box;{border}'></div></div></td>"
        f"<td style='text-align:left;padding-left:.5em'>{html.escape(bar.text)}{mark}</td></tr>"
    )


def stacked_bar(parts: Sequence[tuple[str, float, str]], *, limit: float, limit_text: str, colour: str) -> str:
    """Draw parts end to end in one bar, against a limit in the same unit.

    Each part has a name, a size, and the size as text; a pattern distinguishes it from its neighbours.
    """
    parts = [part for part in parts if part[1] > 0]
    # A little wider than needed, so that the line of the limit stays inside.
    full_width = max(sum(size for _, size, _ in parts), limit) * 1.04
    patterns = [_PATTERNS[i % len(_PATTERNS)] for i in range(len(parts))]
    fills = [colour if pattern == "none" else f"{pattern},{colour}" for pattern in patterns]
    segments = "".join(
        f"<div title='{html.escape(f'{name}: {text}')}' style='width:{100 * size / full_width:.2f}%;"
        f"box-sizing:border-box;border-right:1px solid var(--jp-layout-color1,Canvas);background:{fill}'></div>"
        for (name, size, text), fill in zip(parts, fills, strict=True)
    )
    legend = "".join(
        f"<span style='white-space:nowrap;margin-right:1em'><span style='display:inline-block;width:1em;height:.8em;"
        f"background:{fill}'></span> {html.escape(name)} {html.escape(text)}</span> "
        for (name, _, text), fill in zip(parts, fills, strict=True)
    )
    x = 100 * limit / full_width
    # Put the label on the side of the limit with more space.
    side = f"right:{100 - x:.2f}%;padding-right:5px" if x > 50 else f"left:{x:.2f}%;padding-left:5px"
    return (
        "<div style='position:relative;height:3.1em'>"
        f"<div style='position:absolute;{side};top:0'>{html.escape(limit_text)}</div>"
        "<div style='position:absolute;top:1.5em;height:1.5em;width:100%;display:flex;"
        f"background:var(--jp-layout-color2,rgba(128,128,128,.25))'>{segments}</div>"
        f"<div style='position:absolute;top:0;height:100%;left:{x:.2f}%;border-left:3px solid {_INK}'></div></div>"
        f"<div>{legend}</div>"
    )
