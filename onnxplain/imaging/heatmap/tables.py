"""Named features, strongest first: a bar chart as a picture or as HTML."""

from __future__ import annotations

import html as escaping
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxplain.errors import InputError, OptionError
from onnxplain.imaging.heatmap import letters
from onnxplain.imaging.heatmap.colors import palette
from onnxplain.imaging.heatmap.letters import Image

TOP = 20
ROW, MARGIN, GAP = 26, 16, 8  # pixels
BARS = 480  # pixels: from the lowest to the highest value
SIZE = 0.5  # of the letters


def ranked(values: npt.ArrayLike, names: Sequence[object], top: int = TOP) -> list[tuple[str, float]]:
    """Order features by magnitude: the strongest ``top``, then what all others come to together, if there are any.

    Parameters
    ----------
    values : ndarray with F elements
        One attribution per feature; the sum of what this returns is theirs.
    names
        F names, in the features' order.
    top
        How many to name.
    """
    vector = np.asarray(values, np.float64).ravel()
    if len(vector) != len(names) or not len(vector):
        raise InputError(
            f"{len(names)} names do not belong to an attribution of shape {np.shape(values)}", "Give one per value."
        )
    if not np.isfinite(vector).all():
        raise InputError(f"{np.count_nonzero(~np.isfinite(vector))} of the attribution's values are NaN or infinite")
    if top < 1:
        raise OptionError(f"top must be a number of features, 1 or more, not {top!r}")
    order = np.argsort(-np.abs(vector), kind="stable")
    rows = [(str(names[i]), float(vector[i])) for i in order[:top]]
    others = order[top:]
    return rows + ([(f"{len(others)} others together", float(vector[others].sum()))] if len(others) else [])


def ranking(values: npt.ArrayLike, names: Sequence[object], *, top: int = TOP, colors: str = "auto") -> Image:
    """Draw the strongest features as bars to the right and left of a line, with names and numbers.

    What the others come to together is a number without a bar, which could dwarf all others.

    Parameters
    ----------
    values, names, top
        As for `ranked`. Names are spelt in ASCII and cut to 48 letters; `ranking_html` keeps them.
    colors
        A name in `COLORS`; "auto" is blue-white-red.
    """
    rows = [(letters.plain(name), value) for name, value in ranked(values, names, top)]
    numbers = [f"{value:+.3g}" for _, value in rows]
    names_width = max(letters.extent(name, SIZE)[0] for name, _ in rows)
    room = max(letters.extent(number, SIZE)[0] for number in numbers) + GAP  # beside the longest bar
    least, most = _reach(rows, top)
    scale = BARS / ((most - least) or 1.0)
    zero = MARGIN + names_width + 2 * GAP + (room if any(value < 0 for _, value in rows) else 0) + round(-least * scale)
    width = zero + round(most * scale) + room + MARGIN
    chart = np.full((len(rows) * ROW + 2 * MARGIN, width, 3), 255, np.uint8)
    for place, ((name, value), number) in enumerate(zip(rows, numbers, strict=True)):
        upper, length = MARGIN + place * ROW, round(value * scale) if place < top else 0
        left, right = min(zero, zero + length), max(zero, zero + length)
        chart[upper + 4 : upper + ROW - 4, left:right] = _color(value, colors)
        beside = left - letters.extent(number, SIZE)[0] - GAP // 2 if value < 0 else right + GAP // 2
        letters.write(chart, number, beside, upper + 18, SIZE)
        letters.write(chart, name, MARGIN + names_width - letters.extent(name, SIZE)[0], upper + 18, SIZE)
    chart[MARGIN:-MARGIN, zero] = 96
    return chart


def ranking_html(values: npt.ArrayLike, names: Sequence[object], *, top: int = TOP, colors: str = "auto") -> str:
    """Write the strongest features as an HTML table with bars; parameters as for `ranking`."""
    rows = ranked(values, names, top)
    least, most = _reach(rows, top)
    part = 100 / ((most - least) or 1.0)  # of the width, in per cent
    lines = []
    for place, (name, value) in enumerate(rows):
        length = value * part if place < top else 0.0
        left = min(length, 0.0) - least * part
        color = "#{:02x}{:02x}{:02x}".format(*_color(value, colors))
        bar = f"margin-left:{left:.2f}%;width:{abs(length):.2f}%;height:1em;background:{color}"
        lines.append(
            f'<tr><td style="width:35%;text-align:right;overflow-wrap:anywhere">{escaping.escape(name)}</td>'
            f'<td><div style="{bar}"></div></td><td style="width:6em">{value:+.3g}</td></tr>'
        )
    return '<table style="width:100%;table-layout:fixed">\n' + "\n".join(lines) + "\n</table>\n"


def _reach(rows: Sequence[tuple[str, float]], top: int) -> tuple[float, float]:
    """The ends of the longest bars to the left and to the right of zero."""
    values = [value for _, value in rows[:top]]
    return min(0.0, *values), max(0.0, *values)


def _color(value: float, colors: str) -> tuple[int, int, int]:
    """One colour for each sign, two thirds up the table, as in `bars`."""
    chosen = palette(colors, signed=True)
    red, green, blue = chosen.table[chosen.zero + (1 if value >= 0 else -1) * (chosen.zero * 2 // 3)].tolist()
    return red, green, blue
