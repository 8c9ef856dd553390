"""The parts of pages that are made from the code: what is said about methods, and the floors of the package.

A page has markers, between which the text is replaced::

    <!-- index -->            a table of all methods, by family
    <!-- methods: noise -->   every method of a family: formula, promise, cost, when to use it, papers, options
    <!-- floors -->           the package's rooms by import floor, with the first lines of their docstrings
    <!-- kinds -->            the kinds of nodes, with their comments in the code
    <!-- end -->
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import onnxplain as ox
from onnxplain.methods.spec import FAMILIES, Cost, MethodSpec, Option
from tools.structure import PACKAGE, Structure

DOCS = Path(__file__).resolve().parents[2] / "docs"
MARKED = re.compile(r"(<!-- (index|floors|kinds|methods: (\w+)) -->\n).*?(<!-- end -->)", re.DOTALL)


def written() -> dict[Path, str]:
    """Page -> its text with everything between markers made anew, for the pages that have markers."""
    texts = {path: path.read_text("utf-8") for path in sorted(DOCS.rglob("*.md"))}
    return {path: MARKED.sub(_between, text) for path, text in texts.items() if MARKED.search(text)}


def _between(match: re.Match[str]) -> str:
    makers = {"index": index, "floors": floors, "kinds": kinds}
    text = "\n\n".join(map(section, of_family(match[3]))) if match[3] else makers[match[2]]()
    return f"{match[1]}\n{text}\n\n{match[4]}"


def floors() -> str:
    """A table of the package's rooms, the highest floor first."""
    structure = Structure(PACKAGE)
    rows = ["| floor | room | what is in it |", "|---|---|---|"]
    for room, floor in sorted(structure.floors.items(), key=lambda item: (-item[1], item[0])):
        path = Path(room) / "__init__.py" if (PACKAGE / room).is_dir() else Path(f"{room}.py")
        summary = (ast.get_docstring(structure.trees[path]) or "").partition("\n")[0].replace("``", "`")
        rows.append(f"| {floor} | `{room}{'/' if path.parts[1:] else '.py'}` | {_cell(summary)} |")
    return "\n".join(rows)


def kinds() -> str:
    """A table of the kinds of nodes that composites choose rules by."""
    members = re.findall(r"^    (\w+) = enum\.auto\(\)  # (.+)$", inspect.getsource(ox.Kind), re.MULTILINE)
    missing = {kind.name for kind in ox.Kind} - {name for name, _ in members}
    assert not missing, f"kinds without a comment: {missing}"
    rows = ["| kind | nodes |", "|---|---|", *(f"| `{name}` | {_cell(comment)} |" for name, comment in members)]
    return "\n".join(rows)


def of_family(family: str) -> list[MethodSpec]:
    """The methods of a family, in the order of the table."""
    return [spec for spec in ox.METHODS.values() if spec.family == family]


def index() -> str:
    """A table of all methods for each family."""
    return "\n\n".join(_index_of(family, title) for family, title in FAMILIES.items())


def _index_of(family: str, title: str) -> str:
    name, _, meaning = title.partition(": ")
    rows = ["| method | attributions | sum to | forward passes | backward passes |", "|---|---|---|---|---|"]
    for spec in of_family(family):
        cells = (spec.summary, _promise(spec).partition(",")[0], f"`{spec.cost.forward}`", f"`{spec.cost.backward}`")
        rows.append(f"| [`{spec.name}`]({family}.md#{spec.name}) | {' | '.join(map(_cell, cells))} |")
    return f"## [{name}]({family}.md)\n\n{_sentence(meaning)}\n\n" + "\n".join(rows)


def section(spec: MethodSpec) -> str:
    """What a family's page says about one method."""
    parts = [f"## `{spec.name}`", spec.summary, f"$$\n{spec.latex}\n$$"]
    if spec.promise:
        parts.append(f"The attributions of a sample sum to {_promise(spec)}.")
    parts.append(f"**When to use it.** {spec.use}")
    parts.append(f"**When not to.** {spec.avoid}")
    parts.append(f"**Cost for one sample.** {_cost(spec.cost)}")
    if spec.papers:
        papers = ", ".join(f"[{paper.citation}]({paper.url}), *{paper.title}*" for paper in spec.papers)
        parts.append(f"**{'Papers' if len(spec.papers) > 1 else 'Paper'}.** {papers}.")
    parts.append("\n".join(_options(spec.options)) if spec.options else "It has no options.")
    return "\n\n".join(parts)


def _options(options: tuple[Option, ...]) -> Iterator[str]:
    yield "| option | default | unit | meaning |"
    yield "|---|---|---|---|"
    for option in options:
        default = f"`{option.default}`"
        source = f" *Source:* {option.source}." if option.source else ""
        meaning = f"{option.meaning} *Values:* {option.valid}.{source}"
        yield f"| `{option.name}` | {default} | {_cell(option.unit)} | {_cell(meaning)} |"


def _promise(spec: MethodSpec) -> str:
    sum_, comma, condition = spec.promise.partition(",")
    return f"`{sum_}`{comma}{condition}" if sum_ else ""


def _cost(cost: Cost) -> str:
    passes = [(cost.forward, "forward"), (cost.backward, "backward")]
    counted = [f"`{count}` {way} {'pass' if count == '1' else 'passes'}" for count, way in passes if count != "0"]
    return ", ".join(counted) + (f" ({cost.note})." if cost.note else ".")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
