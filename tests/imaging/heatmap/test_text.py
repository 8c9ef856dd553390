"""Coloured text: how tokens are joined, coloured and escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.text import Text

from onnxplain.errors import InputError
from onnxplain.imaging.heatmap import COLORS, characters, heatmap, html, page, pieces, render, terminal, visible

BERT = ["[CLS]", "un", "##ha", "##ppy", "cat", ".", "[SEP]"]


def joined(tokens):
    return "".join(piece.gap + piece.text for piece in pieces(np.ones(len(tokens)), tokens))


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (BERT, "[CLS] unhappy cat . [SEP]"),
        (["Hello", "Ġwor", "ld", "Ċ", "Ġ!"], "Hello world⏎\n!"),
        (["▁The", "▁qu", "ick", "▁"], "The quick ␣"),
        (["The", " quick", "est"], "The quickest"),
        (["the", "cat"], "the cat"),
        (["##", "#", "##s"], "## #s"),
        (list("a b"), "a b"),
        (b"a\n\xff b", "a⏎\n\\xff b"),
        (["a\x1b[0m", "", "\t"], "a\\x1b[0m ␣ ⇥"),
        ([101, 7592], "101 7592"),
    ],
)
def test_pieces_are_joined(tokens, text):
    assert joined(tokens) == text


def test_characters_of_bytes():
    assert characters([65, 0, 255, 256, -1, 10]) == ["A", "\\x00", "\\xff", "·", "·", "\n"]
    assert all(visible(c).isprintable() for c in characters(range(257)))


def test_colours_are_those_of_pictures():
    values = np.array([0.0, -0.5, 1, 0.25, -1e-9])
    expected = render(heatmap(values), colors="blue_white_red")[0]
    for piece, color, value in zip(pieces(values, "abcde"), expected, values, strict=True):
        assert piece.value == value
        assert piece.background == (None if (color == 255).all() else tuple(color))
    assert [p.background for p in pieces([0, 0], "ab")] == [None, None]


def test_embeddings_are_summed():
    values = np.arange(12.0).reshape(3, 4)
    assert pieces(values, "abc") == pieces(values.sum(axis=1), "abc")


@pytest.mark.parametrize("colors", COLORS)
def test_letters_have_contrast(colors):
    """At least 4.5 : 1, what WCAG 2 asks of body text."""

    def luminance(color):
        part = np.array(color) / 255
        return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for piece in pieces(np.linspace(-1, 1, 101), "x" * 101, colors=colors):
        back, letters = luminance(piece.background or (255, 255, 255)), luminance(piece.letters)
        assert (max(back, letters) + 0.05) / (min(back, letters) + 0.05) > 4.5


class Reader(HTMLParser):
    """Return the text that a browser would show, and its spans."""

    def __init__(self):
        super().__init__()
        self.shown, self.spans = "", []

    def handle_starttag(self, tag, attributes):
        assert tag in ("p", "span")
        if tag == "span":
            self.spans.append(dict(attributes))

    def handle_data(self, data):
        self.shown += data


def test_html_shows_every_token_as_it_is():
    tokens = ["<script>", "a&b", '"quoted"', "é", "'"]
    reader = Reader()
    reader.feed(html([1, -1, 0, 0.5, 0.25], tokens))
    assert reader.shown.strip() == " ".join(tokens)
    assert [span["title"] for span in reader.spans] == ["0: +1", "1: -1", "2: +0", "3: +0.5", "4: +0.25"]
    assert "style" not in reader.spans[2]
    for span, piece in zip(reader.spans, pieces([1, -1, 0, 0.5, 0.25], tokens), strict=True):
        assert piece.background is None or "background:#{:02x}{:02x}{:02x}".format(*piece.background) in span["style"]


def test_a_page_stands_alone():
    text = page("a < b", "<p>body</p>")
    assert "<title>a &lt; b</title>" in text
    assert 'charset="utf-8"' in text
    assert "<p>body</p>" in text
    assert "http" not in text


def test_terminal_text_is_the_pieces_in_their_colours():
    values = np.array([0, 0.5, -1, 0.25, 0, 0.1, 0])
    shown = terminal(values, BERT)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert plain == "[CLS] unhappy cat . [SEP]"
    text = Text.from_ansi(shown)
    assert text.plain == plain
    colored = {text.plain[span.start : span.end]: span.style for span in text.spans if span.style.bgcolor}
    for piece in pieces(values, BERT):
        assert (piece.text in colored) == (piece.background is not None)
        if piece.background:
            assert tuple(colored[piece.text].bgcolor.triplet) == piece.background
            assert tuple(colored[piece.text].color.triplet) == piece.letters


def test_ten_thousand_tokens():
    assert html(np.random.default_rng(0).normal(size=10_000), ["token"] * 10_000).count("<span") == 10_000


def test_what_does_not_belong_together():
    for values, tokens in ((np.ones(3), ["a"]), (np.ones(()), ["a"]), ([], [])):
        with pytest.raises(InputError, match="tokens do not belong to an attribution of shape"):
            pieces(values, tokens)
    with pytest.raises(InputError, match="NaN"):
        pieces([1, np.nan], "ab")
