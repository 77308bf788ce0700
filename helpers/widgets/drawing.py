"""Small pictures as HTML and SVG: made in a millisecond, sharp at any size, in the colours of either theme.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/); a text or a pattern says what a colour says.
Every text that is given is escaped here.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

GREEN, ORANGE, RED, BLUE = "#009E73", "#E69F00", "#D55E00", "#0072B2"
INK, LINE = "var(--jp-ui-font-color1,#333)", "var(--jp-border-color1,#999)"
PATTERNS = (
    "none",
    "repeating-linear-gradient(45deg,#fff6 0 2px,#0000 2px 7px)",
    "repeating-linear-gradient(-45deg,#0005 0 2px,#0000 2px 7px)",
    "repeating-linear-gradient(90deg,#fff6 0 2px,#0000 2px 6px)",
    "radial-gradient(#0007 1.5px,#0000 2px) 0 0/7px 7px",
    "repeating-linear-gradient(0deg,#fff6 0 2px,#0000 2px 6px)",
    "radial-gradient(#fff9 1.5px,#0000 2px) 0 0/7px 7px",
)


class Series(NamedTuple):
    """One line of a chart: its name, its points, its colour, and its dashes as SVG writes them."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = BLUE
    dashes: str = ""


class Bar(NamedTuple):
    """One bar: its name, the length of the filled bar, what is written behind it, and the length of its outline."""

    name: str
    share: float
    text: str
    outline: float = 0.0
    is_marked: bool = False


def line_chart(series: Sequence[Series], *, title: str, xlabel: str, ylabel: str, width: int = 420) -> str:
    """Draw lines over a common horizontal axis; series without points are left out."""
    shown = [line for line in series if line.points]
    xs = [x for line in shown for x, _ in line.points] or [0, 1]
    ys = [y for line in shown for _, y in line.points if math.isfinite(y)] or [0, 1]
    left, top, right, bottom = 62, 24, width - 10, 142
    x0, x1 = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y0, y1 = (min(ys), max(ys)) if max(ys) > min(ys) else (min(ys) - 1, max(ys) + 1)

    def at(x: float, y: float) -> str:
        return (
            f"{left + (x - x0) / (x1 - x0) * (right - left):.1f},{bottom - (y - y0) / (y1 - y0) * (bottom - top):.1f}"
        )

    lines = [
        f"<polyline fill='none' stroke='{line.colour}' stroke-width='2' stroke-dasharray='{line.dashes}' "
        f"points='{' '.join(at(x, y) for x, y in line.points if math.isfinite(y))}'/>"
        for line in shown
    ]
    legend = " ".join(
        f"<tspan fill='{line.colour}' font-weight='bold'>{'- -' if line.dashes else '—'}</tspan> "
        f"{html.escape(line.name)}"
        for line in shown
    )
    words = [
        (left, 14, "start", f"{html.escape(title)} {legend if len(shown) > 1 else ''}"),
        (left - 5, top + 4, "end", f"{y1:.3g}"),
        (left - 5, bottom, "end", f"{y0:.3g}"),
        (left, bottom + 15, "start", f"{x0:,.0f}"),
        (right, bottom + 15, "end", f"{x1:,.0f}"),
        ((left + right) / 2, bottom + 15, "middle", html.escape(xlabel)),
    ]
    texts = "".join(f"<text x='{x}' y='{y}' text-anchor='{anchor}'>{text}</text>" for x, y, anchor, text in words)
    middle = (top + bottom) / 2
    turned = f"x='12' y='{middle}' text-anchor='middle' transform='rotate(-90 12 {middle})'"
    texts += f"<text {turned}>{html.escape(ylabel)}</text>"
    return (
        f"<svg role='img' aria-label='{html.escape(title)}' viewBox='0 0 {width} 162' "
        f"style='width:100%;max-width:{width}px;font-size:11px;fill:{INK}'>"
        f"<path d='M{left} {top}V{bottom}H{right}' fill='none' stroke='{LINE}'/>{''.join(lines)}{texts}</svg>"
    )


def bar_chart(bars: Sequence[Bar], *, title: str, colour: str = BLUE) -> str:
    """Draw named shares, 0 to 1, as horizontal bars; an outline shows a second share in the same place."""
    most = max([1e-9, *(max(bar.share, bar.outline) for bar in bars)])
    rows = "".join(_bar_row(bar, most, colour) for bar in bars)
    return (
        "<table style='width:100%;border-collapse:collapse'>"
        f"<caption style='text-align:left'>{html.escape(title)}</caption><tbody>{rows}</tbody></table>"
    )


def _bar_row(bar: Bar, most: float, colour: str) -> str:
    line = f"border:1.5px dashed {INK}" if bar.outline else ""
    drawn = " <b>&#9664; drawn</b>" if bar.is_marked else ""
    return (
        "<tr><td style='text-align:right;padding-right:.5em;white-space:pre;max-width:11em;overflow:hidden'>"
        f"{html.escape(bar.name)}</td>"
        "<td style='width:50%'><div style='position:relative;height:1em'>"
        f"<div style='position:absolute;height:100%;width:{100 * bar.share / most:.1f}%;background:{colour}'></div>"
        f"<div style='position:absolute;height:100%;width:{100 * bar.outline / most:.1f}%;"
        f"box-sizing:border-box;{line}'></div></div></td>"
        f"<td style='text-align:left;padding-left:.5em'>{html.escape(bar.text)}{drawn}</td></tr>"
    )


def stacked_bar(parts: Sequence[tuple[str, float, str]], *, limit: float, limit_text: str, colour: str) -> str:
    """Draw parts behind each other against a limit.

    Args:
        parts: name, size and the size in words, of each; a pattern tells each from its neighbours.
        limit: where the line stands, in the parts' unit.
        limit_text: what is written at the line.
        colour: of the whole bar.
    """
    parts = [part for part in parts if part[1] > 0]
    whole = max(sum(size for _, size, _ in parts), limit) * 1.04
    patterns = [PATTERNS[i % len(PATTERNS)] for i in range(len(parts))]
    segments = "".join(
        f"<div title='{html.escape(f'{name}: {words}')}' style='width:{100 * size / whole:.2f}%;box-sizing:border-box;"
        f"border-right:1px solid var(--jp-layout-color1,#fff);background:{_filled(pattern, colour)}'></div>"
        for (name, size, words), pattern in zip(parts, patterns, strict=True)
    )
    legend = "".join(
        f"<span style='white-space:nowrap;margin-right:1em'><span style='display:inline-block;width:1em;height:.8em;"
        f"background:{_filled(pattern, colour)}'></span> {html.escape(name)} {html.escape(words)}</span> "
        for (name, _, words), pattern in zip(parts, patterns, strict=True)
    )
    where = 100 * limit / whole
    side = f"right:{100 - where:.2f}%;padding-right:5px" if where > 50 else f"left:{where:.2f}%;padding-left:5px"
    return (
        "<div style='position:relative;height:3.1em'>"
        f"<div style='position:absolute;{side};top:0'>{html.escape(limit_text)}</div>"
        "<div style='position:absolute;top:1.5em;height:1.5em;width:100%;display:flex;"
        f"background:var(--jp-layout-color2,#eee)'>{segments}</div>"
        f"<div style='position:absolute;top:0;height:100%;left:{where:.2f}%;border-left:3px solid {INK}'></div></div>"
        f"<div>{legend}</div>"
    )


def _filled(pattern: str, colour: str) -> str:
    return colour if pattern == "none" else f"{pattern},{colour}"
