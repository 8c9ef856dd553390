"""Tokens on the colour of their attribution: HTML for a browser, escape sequences for a terminal."""

from __future__ import annotations

import html as escaping
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxplain.errors import InputError
from onnxplain.imaging.heatmap.colors import palette
from onnxplain.imaging.heatmap.letters import readable_on
from onnxplain.imaging.heatmap.reduce import heatmap as heatmap_of

Color = tuple[int, int, int]
Tokens = Sequence[object] | bytes

SPACE_MARKS = "Ġ▁"  # of GPT-2's and SentencePiece's vocabularies, before a word
CHARACTER = re.compile(r".|\\x[0-9a-f]{2}", re.DOTALL)
VISIBLE = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
STYLE = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.8"


@dataclass(frozen=True)
class Piece:
    """A token as it is shown.

    Attributes
    ----------
    gap
        What is between it and the one before: nothing, a space or a new line.
    text
        Its letters, without marks of word pieces; control characters are visible.
    value
        Its attribution.
    background, letters
        RGB colours; no background where the attribution looks like zero.
    """

    gap: str
    text: str
    value: float
    background: Color | None
    letters: Color


def characters(numbers: Iterable[int]) -> list[str]:
    r"""Bytes as tokens: ASCII characters, others as ``\xff``; "·" for numbers that are no bytes, as paddings are."""
    shown = [chr(n) if 32 <= n < 127 or n in (9, 10, 13) else rf"\x{n:02x}" for n in range(256)]
    return [shown[n] if 0 <= n < 256 else "·" for n in map(int, numbers)]


def pieces(values: npt.ArrayLike, tokens: Tokens, *, colors: str = "auto", percentile: float = 99.5) -> list[Piece]:
    """Colour tokens by their attribution, scaled as pictures are.

    Word pieces are joined: "##" and the lack of "Ġ" or "▁" glue a token to the one before. Where there are no such
    marks, and no token brings its own space, words are parted by spaces, unless all are single characters.

    Parameters
    ----------
    values : ndarray of shape (L,) or (L, D)
        The attribution; a token gets the sum over the axes of its embedding.
    tokens
        L tokens, or L bytes.
    colors
        A name in `COLORS`; "auto" is blue-white-red.
    percentile
        As for `heatmap`.

    Raises
    ------
    InputError
        More or fewer tokens than values, or values that are NaN or infinite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim < 1 or len(array) != len(tokens) or not array.size:
        raise InputError(
            f"{len(tokens)} tokens do not belong to an attribution of shape {array.shape}",
            "Give one token for each position, paddings and special tokens included.",
        )
    sums = array.reshape(len(array), -1).sum(axis=1)
    strength = heatmap_of(sums, percentile=percentile)
    chosen = palette(colors, signed=True)
    shades = chosen.paint(strength[0])
    texts = characters(tokens) if isinstance(tokens, bytes) else [str(token) for token in tokens]
    shown = []
    for (gap, text), value, shade in zip(_joined(texts), sums, shades, strict=True):
        red, green, blue = shade.tolist()
        background = None if min(red, green, blue) == 255 else (red, green, blue)
        shown.append(Piece(gap, text, float(value), background, readable_on(shade)))
    return shown


def html(values: npt.ArrayLike, tokens: Tokens, *, colors: str = "auto", percentile: float = 99.5) -> str:
    """Write tokens as an HTML paragraph; the number of each is its tooltip. Parameters as for `pieces`."""
    spans = []
    for position, piece in enumerate(pieces(values, tokens, colors=colors, percentile=percentile)):
        colored = f"background:{_hex(piece.background)};color:{_hex(piece.letters)}" if piece.background else ""
        style, text = f' style="{colored}"' if colored else "", escaping.escape(piece.text)
        spans.append(f'{piece.gap}<span title="{position}: {piece.value:+.4g}"{style}>{text}</span>')
    return f'<p style="{STYLE}">{"".join(spans)}</p>\n'


def terminal(values: npt.ArrayLike, tokens: Tokens, *, colors: str = "auto", percentile: float = 99.5) -> str:
    """Write tokens with the escape sequences that colour them on a terminal of 24-bit colours; as for `pieces`."""
    parts = []
    for piece in pieces(values, tokens, colors=colors, percentile=percentile):
        shown = piece.text
        if piece.background:
            letters, background = (";".join(map(str, color)) for color in (piece.letters, piece.background))
            shown = f"\x1b[38;2;{letters};48;2;{background}m{shown}\x1b[0m"
        parts.append(piece.gap + shown)
    return "".join(parts)


def page(title: str, body: str) -> str:
    """Make a stand-alone HTML page, light also where the system is dark."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaping.escape(title)}</title>\n<style>body {{ background: #fff; color: #000; max-width: 60em; "
        "margin: 2em auto; padding: 0 1em; font-family: system-ui, sans-serif } td { padding: 0 .5em }</style>\n"
        f"</head>\n<body>\n<p>{escaping.escape(title)}</p>\n{body}</body>\n</html>\n"
    )


def visible(text: str) -> str:
    """Letters of a token, its control characters spelt out; a mark for an empty one."""
    shown = "".join(c if c.isprintable() else VISIBLE.get(c, ascii(c)[1:-1]) for c in text)
    return shown or "␣"


def _joined(tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The gap before each token and what is shown of it."""
    marked = any(token[:1] in (*SPACE_MARKS, " ") for token in tokens if token)
    apart = not marked and not all(CHARACTER.fullmatch(token) for token in tokens)
    start = ""  # of the text, or a new line where the token before ended one
    for place, token in enumerate(tokens):
        gap, text = " " if apart else "", token
        if text.startswith("##") and len(text) > 2:
            gap, text = "", text[2:]
        elif text and text[0] in SPACE_MARKS:
            gap, text = " ", text[1:]
        if marked:
            text = text.replace("Ċ", "\n")  # GPT-2's new line
        yield start or (gap if place else ""), visible(text)
        start = "\n" if text.endswith("\n") else ""


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
