"""Tokens with their attribution as background colour: as HTML, or as escape sequences for a terminal."""

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

SPACE_MARKS = "Ġ▁"  # start of a word in the vocabularies of GPT-2 and SentencePiece
CHARACTER = re.compile(r".|\\x[0-9a-f]{2}", re.DOTALL)  # one character as `characters` spells it
VISIBLE = {"\n": "⏎", "\r": "␍", "\t": "⇥"}  # control character -> the sign that stands for it
STYLE = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.8"


@dataclass(frozen=True)
class Piece:
    """A token as it is displayed.

    Attributes
    ----------
    gap
        Text between the previous token and this one: empty, a space or a newline.
    text
        The token without its word-piece marks; control characters are replaced by visible signs.
    value
        The token's attribution.
    background, letters
        RGB colours of the background and of the text; background is None if it would be white.
    """

    gap: str
    text: str
    value: float
    background: Color | None
    letters: Color


def characters(numbers: Iterable[int]) -> list[str]:
    r"""Return bytes as tokens: ASCII as characters, others as ``\xff``; numbers outside 0..255 (padding) become "·"."""
    shown = [chr(n) if 32 <= n < 127 or n in (9, 10, 13) else rf"\x{n:02x}" for n in range(256)]
    return [shown[n] if 0 <= n < 256 else "·" for n in map(int, numbers)]


def pieces(values: npt.ArrayLike, tokens: Tokens, *, colors: str = "auto", percentile: float = 99.5) -> list[Piece]:
    """Colour tokens by their attribution, scaled as in `heatmap`.

    Word pieces are joined. A token that starts with "##" continues the word before it; if any token starts with "Ġ",
    "▁" or a space, tokens without such a mark do so too. Without any marks, tokens are separated by spaces, unless all
    are single characters.

    Parameters
    ----------
    values : ndarray of shape (L,) or (L, D)
        The attribution; a token has the sum over the D elements of its embedding.
    tokens
        L tokens, or L bytes.
    colors
        A name in `COLORS`; "auto" is blue-white-red.
    percentile
        As in `heatmap`.

    Raises
    ------
    InputError
        The numbers of tokens and values differ, or a value is NaN or infinite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim < 1 or len(array) != len(tokens) or not array.size:
        raise InputError(
            f"{len(tokens)} tokens do not belong to an attribution of shape {array.shape}",
            "Give one token per position, including padding and special tokens.",
        )
    sums = array.reshape(len(array), -1).sum(axis=1)
    strength = heatmap_of(sums, percentile=percentile)
    shades = palette(colors, signed=True).paint(strength[0])
    texts = characters(tokens) if isinstance(tokens, bytes) else [str(token) for token in tokens]
    shown = []
    for (gap, text), value, shade in zip(_joined(texts), sums, shades, strict=True):
        red, green, blue = shade.tolist()
        background = None if min(red, green, blue) == 255 else (red, green, blue)
        shown.append(Piece(gap, text, float(value), background, readable_on(shade)))
    return shown


def html(values: npt.ArrayLike, tokens: Tokens, *, colors: str = "auto", percentile: float = 99.5) -> str:
    """Write tokens as an HTML paragraph, with position and attribution as tooltips; parameters as in `pieces`."""
    spans = []
    for position, piece in enumerate(pieces(values, tokens, colors=colors, percentile=percentile)):
        colored = f"background:{_hex(piece.background)};color:{_hex(piece.letters)}" if piece.background else ""
        style, text = f' style="{colored}"' if colored else "", escaping.escape(piece.text)
        spans.append(f'{piece.gap}<span title="{position}: {piece.value:+.4g}"{style}>{text}</span>')
    return f'<p style="{STYLE}">{"".join(spans)}</p>\n'


def terminal(values: npt.ArrayLike, tokens: Tokens, *, colors: str = "auto", percentile: float = 99.5) -> str:
    """Write tokens with escape sequences for a terminal with 24-bit colours; parameters as in `pieces`."""
    parts = []
    for piece in pieces(values, tokens, colors=colors, percentile=percentile):
        shown = piece.text
        if piece.background:
            letters, background = (";".join(map(str, color)) for color in (piece.letters, piece.background))
            shown = f"\x1b[38;2;{letters};48;2;{background}m{shown}\x1b[0m"
        parts.append(piece.gap + shown)
    return "".join(parts)


def page(title: str, body: str) -> str:
    """Return a stand-alone HTML page with a light background, whatever the system's colour scheme."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaping.escape(title)}</title>\n<style>body {{ background: #fff; color: #000; max-width: 60em; "
        "margin: 2em auto; padding: 0 1em; font-family: system-ui, sans-serif } td { padding: 0 .5em }</style>\n"
        f"</head>\n<body>\n<p>{escaping.escape(title)}</p>\n{body}</body>\n</html>\n"
    )


def visible(text: str) -> str:
    """Return a token with visible signs for its control characters; "␣" for an empty token."""
    shown = "".join(c if c.isprintable() else VISIBLE.get(c, ascii(c)[1:-1]) for c in text)
    return shown or "␣"


def _joined(tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the gap before each token, and its visible text."""
    marked = any(token[:1] in (*SPACE_MARKS, " ") for token in tokens if token)
    spaced = not marked and not all(CHARACTER.fullmatch(token) for token in tokens)
    newline = ""  # a newline if the token before ended in one
    for position, token in enumerate(tokens):
        gap, text = " " if spaced else "", token
        if text.startswith("##") and len(text) > 2:
            gap, text = "", text[2:]
        elif text and text[0] in SPACE_MARKS:
            gap, text = " ", text[1:]
        if marked:
            text = text.replace("Ċ", "\n")  # GPT-2's newline
        yield newline or (gap if position else ""), visible(text)
        newline = "\n" if text.endswith("\n") else ""


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
