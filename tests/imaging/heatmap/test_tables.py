"""Named features: their order, their numbers, and bars as long as these say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from onnxplain.errors import InputError, OptionError
from onnxplain.imaging.heatmap import letters, ranked, ranking, ranking_html
from onnxplain.imaging.heatmap.tables import BARS, MARGIN, ROW


def lengths(chart, rows):
    """Pixels of red and of blue in each row."""
    chart = chart.astype(int)[MARGIN : MARGIN + rows * ROW]
    red, blue = chart[..., 0] > chart[..., 2] + 50, chart[..., 2] > chart[..., 0] + 50
    middle = np.arange(rows) * ROW + 6  # above the letters
    return red[middle].sum(1).tolist(), blue[middle].sum(1).tolist()


def test_ranked_keeps_the_sum():
    values = np.random.default_rng(0).normal(size=50)
    rows = ranked(values, [f"c{i}" for i in range(50)], top=7)
    assert [name for name, _ in rows[:7]] == [f"c{i}" for i in np.argsort(-np.abs(values))[:7]]
    assert rows[7][0] == "43 others together"
    assert sum(value for _, value in rows) == pytest.approx(values.sum())
    assert ranked([1, -2], "ab") == [("b", -2), ("a", 1)]
    assert ranked([0, 0], "ab") == [("a", 0), ("b", 0)]


def test_what_cannot_be_ranked():
    with pytest.raises(InputError, match=r"1 names do not belong to an attribution of shape \(2,\)"):
        ranked([1, 2], ["a"])
    with pytest.raises(InputError, match="NaN"):
        ranked([1, np.inf], "ab")
    with pytest.raises(OptionError, match="top"):
        ranked([1, 2], "ab", top=0)


def test_bars_are_as_long_as_the_values():
    red, blue = lengths(ranking([3.0, -1, 0, 1.5], "abcd"), 4)
    assert red == pytest.approx([BARS * 3 / 4, BARS * 1.5 / 4, 0, 0], abs=1)
    assert blue == pytest.approx([0, 0, BARS / 4, 0], abs=1)


def test_others_have_no_bar_which_could_dwarf_the_rest():
    red, blue = lengths(ranking(np.linspace(1, 0.9, 100), range(100), top=3), 4)
    assert red[0] == pytest.approx(BARS, abs=1)
    assert red[3] == blue[3] == 0


@pytest.mark.parametrize(
    "values", [[0.0], [0.0, 0], [5.0], [-5.0, -1], np.ones(10_000), [1e-30, -1e-30], [1e30, -1e30]]
)
def test_charts_of_any_values_have_room_for_their_letters(values):
    chart = ranking(values, [f"feature {i}" for i in range(len(values))])
    assert (chart[:, :8] == 255).all()
    assert (chart[:, -8:] == 255).all()
    assert chart.shape[0] == (min(len(values), 20) + (len(values) > 20)) * ROW + 2 * MARGIN
    assert (chart < 100).any()


def test_names_are_spelt_in_ascii():
    assert letters.plain("Größe  né\n2") == "Gro?e ne 2"
    assert letters.plain("名\x00") == "??"
    assert letters.plain("x" * 49) == "x" * 45 + "..."
    assert letters.plain("x" * 48) == "x" * 48


def test_html_keeps_names_and_numbers():
    text = ranking_html([3.0, -1, 0.5, 0.25], ["<größe>", "b", "c", "d"], top=2)
    assert re.findall(r"anywhere\">(.*?)</td>", text) == ["&lt;größe&gt;", "b", "2 others together"]
    assert re.findall(r">([+-][^<]*)</td></tr>", text) == ["+3", "-1", "+0.75"]
    bars = [tuple(map(float, bar)) for bar in re.findall(r"margin-left:([\d.]+)%;width:([\d.]+)%", text)]
    assert bars == [(25, 75), (0, 25), (25, 0)]
