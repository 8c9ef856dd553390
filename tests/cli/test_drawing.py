"""The command line draws and prints text, tables, signals and volumes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

import onnxplain as ox
from onnxplain.cli import show
from onnxplain.imaging import heatmap
from tests.cli.command import CAT, LITE, TWO, refuse, run, saved
from tests.reference import rng

TABLE = "table (float[N,3] x) => (float[N,2] y) { y = MatMul(x, W) }"
WORDS = """words (int64[N,L] ids) => (float[N,3] y) {
    vectors = Gather(E, ids)
    warm = Tanh(vectors)
    y = ReduceMean<keepdims = 0>(warm, axes) }"""
WAVE = "wave (float[N,T] x) => (float[N,1] y) { s = Mul(x, x) \n y = ReduceSum(s, axes) }"
LEADS = "leads (float[N,C,T] x) => (float[N,C] y) { s = Mul(x, x) \n y = ReduceSum<keepdims = 0>(s, last) }"
VOLUME = "volume (float[N,1,D,H,W] x) => (float[N,1] y) { s = Mul(x, x) \n f = Flatten(s) \n y = ReduceSum(f, axes) }"
AXES = {"axes": np.array([1])}
METHOD = ("-m", "gradient_x_input")


def table():
    np.save("x.npy", np.float32([[1, 2, -3], [4, 0.5, 6]]))
    Path("names.txt").write_text("age\nheight\nGröße\n", encoding="utf-8")
    return saved(TABLE, W=rng().normal(size=(3, 2)).astype(np.float32))


def words():
    np.save("x.npy", np.array([[3, 1, 4, 1], [5, 9, 2, 6]]))
    Path("tokens.txt").write_text("[CLS]\nun\n##do\n<b>\n", encoding="utf-8")
    return saved(WORDS, E=rng().normal(size=(300, 3)).astype(np.float32), **AXES)


def read(name):
    return cv2.imread(name)[:, :, ::-1]


def expected(path, **options):
    return ox.explain(path, np.load("x.npy"), "gradient_x_input", **options)


def test_a_table_with_names(folder):
    path = table()
    lines = run("explain", path, "x.npy", *METHOD, "--names", "names.txt", "--sample", "1", "-o", "x.png").stdout
    values = expected(path).values[1]
    labels = ["age = 4", "height = 0.5", "Größe = 6"]
    rows = [line.split("│")[1:3] for line in lines.splitlines() if "│" in line]
    assert [(name.strip(), value.strip()) for name, value in rows] == [
        (labels[i], f"{values[i]:+.4g}") for i in np.argsort(-np.abs(values))
    ]
    np.testing.assert_array_equal(read("x.png"), heatmap.ranking(values, labels))
    run("explain", path, "x.npy", *METHOD, "--names", "names.txt", "--sample", "1", "-o", "x.html")
    assert heatmap.ranking_html(values, labels) in Path("x.html").read_text(encoding="utf-8")


def test_a_table_without_names_numbers_its_columns():
    path = table()
    assert "column 2 = -3" in run("explain", path, "x.npy", *METHOD, "-o", "x.html").stdout
    assert "column 2 = -3" in Path("x.html").read_text()


def test_values_in_json():
    path = table()
    answer = json.loads(run("explain", path, "x.npy", *METHOD, "--names", "names.txt", "--json").stdout)
    assert answer["names"] == ["age", "height", "Größe"]
    np.testing.assert_allclose(answer["values"], expected(path).values, rtol=1e-6)


def test_text():
    path = words()
    text = run("explain", path, "x.npy", *METHOD, "--tokens", "tokens.txt", "-o", "x.html").stdout
    tokens = ["[CLS]", "un", "##do", "<b>"]
    result = expected(path)
    assert heatmap.html(result.values[0], tokens) in Path("x.html").read_text(encoding="utf-8")
    strongest = int(np.abs(result.values[0]).argmax())
    assert f"{strongest}: {tokens[strongest]}" in text.split("━┩")[1].splitlines()[1]
    run("explain", path, "x.npy", *METHOD, "-o", "ids.html")
    assert heatmap.html(result.values[0], ["3", "1", "4", "1"]) in Path("ids.html").read_text(encoding="utf-8")


def test_bytes():
    path = words()
    np.save("x.npy", np.array([[65, 10, 255, 256]]))
    text = run("explain", path, "x.npy", *METHOD, "--tokens", "bytes", "-o", "x.html").stdout
    assert heatmap.html(expected(path).values[0], ["A", "\n", "\\xff", "·"]) in Path("x.html").read_text()
    assert all(label in text for label in ("0: A", "1: ⏎", "2: \\xff", "3: ·"))


def test_tokens_keep_their_spaces_and_empty_lines():
    path = words()
    Path("tokens.txt").write_text(" a\n\n\tb\nc", encoding="utf-8")
    run("explain", path, "x.npy", *METHOD, "--tokens", "tokens.txt", "-o", "x.html")
    assert heatmap.html(expected(path).values[0], [" a", "", "\tb", "c"]) in Path("x.html").read_text(encoding="utf-8")


def test_text_on_a_terminal_is_coloured(monkeypatch):
    path = words()
    shown = io.StringIO()
    terminal = Console(force_terminal=True, color_system="truecolor", width=80, file=shown)
    monkeypatch.setattr(show, "_console", lambda stderr=False: terminal)
    run("explain", path, "x.npy", *METHOD, "--tokens", "tokens.txt", "-o", "x.html")
    assert "[CLS] undo <b>" in Text.from_ansi(shown.getvalue()).plain
    for piece in heatmap.pieces(expected(path).values[0], ["[CLS]", "un", "##do", "<b>"]):
        letters, background = (";".join(map(str, color)) for color in (piece.letters, piece.background))
        assert f"\x1b[38;2;{letters};48;2;{background}m{piece.text}\x1b[0m" in shown.getvalue()


@pytest.mark.parametrize(("text", "shape"), [(WAVE, (2, 700)), (LEADS, (2, 3, 40)), (VOLUME, (2, 1, 5, 6, 7))])
def test_signals_and_volumes(text, shape):
    np.save("x.npy", rng().normal(size=shape).astype(np.float32))
    path = saved(text, **({"last": np.array([2])} if text == LEADS else AXES))
    out = run("explain", path, "x.npy", *METHOD, "--sample", "1", "-o", "x.png").stdout
    assert "│" not in out
    draw = heatmap.montage if text == VOLUME else heatmap.waveform
    np.testing.assert_array_equal(read("x.png"), draw(expected(path).values[1], np.load("x.npy")[1]))


def test_one_of_several_inputs():
    np.savez("x.npz", a=np.float32([[1, 2]]), b=np.float32([[3, 5]]))
    text = run("explain", saved(TWO), "x.npz", *METHOD, "--wrt", "b", "--target", "1", "-o", "x.png").stdout
    assert "column 1 = 5" in text
    assert "+10" in text


def test_an_internal_tensor_is_not_drawn_as_the_input():
    np.save("x.npy", rng().normal(size=(2, 700)).astype(np.float32))
    path = saved(WAVE, **AXES)
    text = run("explain", path, "x.npy", *METHOD, "--at", "s", "-o", "x.png").stdout
    assert "│" not in text
    np.testing.assert_array_equal(read("x.png"), heatmap.bars(expected(path, at="s").values[0]))


@pytest.mark.parametrize(
    ("make", "given", "error", "hint"),
    [
        (words, ["--tokens", "tokens.txt", "-o", "x.png"], "text is coloured in an HTML page", ".html"),
        (words, ["--tokens", "tokens.txt", "--names", "tokens.txt", "-o", "x.html"], "exclude each other", "Tokens"),
        (words, ["--tokens", "none.txt", "-o", "x.html"], "cannot read 'none.txt': No such file", ""),
        (words, ["--tokens", "x.npy", "-o", "x.html"], "cannot read 'x.npy'", ""),
        (
            words,
            ["--tokens", "names.txt", "-o", "x.html"],
            "--tokens has 3 lines, but the input has 4 values",
            "padding",
        ),
        (words, ["--sample", "2", "-o", "x.html"], "no sample 2; the batch has 2", ""),
        (words, ["--sample", "-1", "-o", "x.html"], "no sample -1", ""),
        (
            table,
            ["--names", "tokens.txt", "-o", "x.png"],
            "--names has 4 lines, but the input has 3 values",
            "Give one line",
        ),
        (table, ["--tokens", "bytes", "-o", "x.html"], "--tokens bytes is for an input of integers", "text file"),
        (table, ["-o", "x.txt"], "must end in .html or", ""),
    ],
)
def test_mistakes_are_told_before_any_work(make, given, error, hint, monkeypatch):
    words()
    table()
    path = make()
    Path("names.txt").write_text("a\nb\nc\n")
    monkeypatch.setattr(ox.Explainer, "__call__", lambda *_, **__: pytest.fail("it ran"))
    said = refuse("explain", path, "x.npy", *METHOD, *given)
    assert error in said[0]
    assert hint in said[1]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["-o", "x.html"], "a page shows text or a table's columns"),
        (["--tokens", "t.txt", "-o", "x.html"], "--tokens is for text and tables"),
        (["--names", "t.txt", "-o", "x.png"], "--names is for text and tables"),
    ],
)
def test_photos_are_no_text(given, error, monkeypatch):
    Path("t.txt").write_text("a\nb\nc\n")
    monkeypatch.setattr(ox.Explainer, "__call__", lambda *_, **__: pytest.fail("it ran"))
    assert error in refuse("explain", LITE, CAT, "-m", "gradient", *given)[0]
