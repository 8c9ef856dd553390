"""The pages of the documentation and the blocks of code on them, run as a reader would run them.

A page's blocks run in order, in an empty folder that has ``models/``. ``python`` blocks share their names. Of ``sh``
blocks, lines that begin with ``onnxplain`` are run. A ``text`` block right after a block of code is what that block
prints, ``...`` standing for anything. ``py`` blocks are excerpts from the package. A block is skipped if the paragraph
before it begins with "*Not run by the tests" and says why.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from textwrap import dedent

from click.testing import CliRunner

from onnxplain.cli import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.rglob("*.md"))
SKIP = "*Not run by the tests"
RUN = ("python", "sh")
KNOWN = {*RUN, "py", "text", "json", "js"}  # py: an excerpt from the package
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes
    ----------
    language
        After the first fence.
    code
        Between the fences.
    line
        Where it begins in its page, counted from 1.
    skipped
        Why it is not run; empty if it is.
    prints
        What it prints, as the block after it says; None: the page does not say.
    """

    language: str
    code: str
    line: int
    skipped: str
    prints: str | None


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = path.read_text("utf-8")
    matches = list(FENCE.finditer(text))
    found = []
    for match, following in zip_longest(matches, matches[1:]):
        before = text[: match.start()].rstrip().rpartition("\n\n")[2]
        right_after = following and following[2] == "text" and not text[match.end() : following.start()].strip()
        prints = following[3] if following and right_after else None
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match[2], dedent(match[3]), line, before if before.startswith(SKIP) else "", prints))
    return found


def run(path: Path) -> None:
    """Run the blocks of a page in the current folder; the first that fails, or prints something else, is an error."""
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(path):
        if block.language not in RUN or block.skipped:
            continue
        printed = _run_python(path, block, names) if block.language == "python" else _run_commands(block)
        if block.prints is not None:
            options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            same = doctest.OutputChecker().check_output(block.prints, printed, options)
            assert same, f"{path.name}:{block.line} prints\n{printed}"


def _run_python(path: Path, block: Block, names: dict[str, object]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * block.line + block.code, str(path), "exec"), names)
    return printed.getvalue()


def commands(block: Block) -> list[list[str]]:
    """The commands of ours in a block, each as its arguments."""
    lines = [line for line in block.code.splitlines() if line.startswith("onnxplain ")]
    return [shlex.split(line)[1:] for line in lines]


def _run_commands(block: Block) -> str:
    printed = []
    for arguments in commands(block):
        done = CliRunner().invoke(main, arguments)
        assert (done.exit_code, done.stderr) == (0, ""), (arguments, done.output)
        printed.append(done.stdout)
    return "".join(printed)
