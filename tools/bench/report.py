"""Tables from measurements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tools.bench.families import FAMILIES
from tools.bench.nets import NETS

Row = dict[str, Any]
COLUMNS = (
    "model",
    "batch",
    "method",
    "forward ms",
    "passes (quartiles)",
    "of the bound",
    "peer",
    "its passes",
    "its time by ours (quartiles)",
    "cosine",
    "peak MB",
    "its peak MB",
)
NEAR = 1.3  # times the arithmetic's bound


def row_of(net: str, batch: int, found: dict[str, Any]) -> Row:
    """Return one row of a worker's measurements: quartiles of ratios, round by round; costs are per point."""
    family, seconds = FAMILIES[found["method"]], found["seconds"]
    forward = np.array(seconds["forward"])
    row: Row = {
        "net": net,
        "batch": batch,
        "bound": family.bound,
        "points": family.points(batch),
        "memory": {},
        **found,
    }
    row["forward"] = float(np.median(forward)) if len(forward) else math.nan
    row["passes"] = {
        n: _quartiles(np.array(s) / forward / family.points(batch)) for n, s in seconds.items() if n != "forward"
    }
    if "ours" in seconds:
        peers = {name: np.array(s) / np.array(seconds["ours"]) for name, s in seconds.items()}
        row["ratios"] = {name: _quartiles(r) for name, r in peers.items() if name not in ("forward", "ours")}
    else:
        row["ratios"] = {}
    return row


def fastest(row: Row) -> str | None:
    """Return the fastest peer."""
    passes = {name: values[1] for name, values in row["passes"].items() if name != "ours"}
    return min(passes, key=lambda name: passes[name]) if passes else None


def cells(row: Row) -> Iterable[Sequence[str]]:
    """Return a line for each peer; at least one."""
    ours, memory = row["passes"].get("ours"), row["memory"]
    first = [NETS[row["net"]].title, str(row["batch"]), row["method"], f"{row['forward'] * 1e3:.1f}"]
    if ours is None:
        first += [row["refusals"].get("ours", ""), ""]
    else:
        first += [_spread(ours), f"{ours[1] / row['bound']:.2f}"]
    for peer in FAMILIES[row["method"]].peers:
        if peer in row["passes"]:
            ratio = _spread(row["ratios"][peer]) if peer in row["ratios"] else ""
            cosine = f"{row['similarity'][peer]:.3f}" if peer in row["similarity"] else ""
            rest = [peer, f"{row['passes'][peer][1]:.2f}", ratio, cosine]
        else:
            rest = [peer, row["refusals"].get(peer, ""), "", ""]
        yield [*first, *rest, _megabytes(memory.get("ours")), _megabytes(memory.get(peer))]


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """Print the whole table."""
    table = Table(*COLUMNS, title="costs in forward passes of ONNX Runtime, medians and quartiles")
    for row in rows:
        for line in cells(row):
            table.add_row(*map(escape, line))
    console.print(table)


def detail(rows: Sequence[Row]) -> str:
    """Return the whole table as Markdown."""
    return _markdown(COLUMNS, [line for row in rows for line in cells(row)])


def summary(result: dict[str, Any]) -> str:
    """Return the tables of docs/results/speed.md: methods by networks per batch size; memory; cold starts; sizes."""
    rows, parts = result["rows"], [f"Measured on {result['machine']}."]
    for batch in sorted({row["batch"] for row in rows}):
        of = [row for row in rows if row["batch"] == batch]
        parts += [f"Forward passes (and the fastest peer's time by ours), batch {batch}:", _pivot(of, _cost)]
        if any(row["memory"] for row in of):
            parts += [f"Peak memory in MB above the loaded model (and the peer's), batch {batch}:", _pivot(of, _peak)]
    for which, prefix in {"all": "", "lrp's": "lrp"}.items():
        mean, most = (_faster(rows, prefix, alone) for alone in (False, True))
        if mean and most:
            parts.append(
                f"Faster than the fastest peer, geometric mean over {which} cells that it can run: {mean:.1f} times; "
                f"{most:.1f} times if ours took nothing but products, at the forward pass's pace."
            )
    if result["cold"]:
        lines = [(NETS[row["net"]].title, row["who"], _seconds(row)) for row in result["cold"]]
        parts += ["Cold start: import, load, first gradient, in a fresh process:", _markdown(COLD, lines)]
    if result["sizes"]:
        lines = [(n, f"{s / 1e6:.0f}" if isinstance(s, int) else s) for n, s in result["sizes"].items()]
        parts += ["Installed, with all that it requires:", _markdown(("", "MB"), lines)]
    return "\n\n".join(parts) + "\n"


COLD = ("model", "", "seconds (quartiles)")


def far_from_bound(rows: Sequence[Row]) -> list[str]:
    """List where our method takes more than `NEAR` times the necessary arithmetic, the worst first."""
    far = [(row["passes"]["ours"][1] / row["bound"], row) for row in rows if "ours" in row["passes"]]
    return [
        f"{factor:.2f} x bound: {NETS[row['net']].title}, batch {row['batch']}, {row['method']}"
        for factor, row in sorted(far, key=lambda pair: -pair[0])
        if factor > NEAR
    ]


def quartiles_of(seconds: Sequence[float]) -> list[float]:
    """Return the quartiles of a list."""
    return _quartiles(np.array(seconds))


def _faster(rows: Sequence[Row], prefix: str, alone: bool) -> float | None:
    """Return the geometric mean of the speed-up over the fastest peer; ``alone``: with our arithmetic alone."""
    compared = [row for row in rows if row["method"].startswith(prefix) and row["ratios"]]
    saved = [row["passes"]["ours"][1] / row["bound"] if alone else 1.0 for row in compared]
    found = [row["ratios"][fastest(row)][1] * factor for row, factor in zip(compared, saved, strict=True)]
    return math.exp(float(np.mean(np.log(found)))) if found else None


def _pivot(rows: Sequence[Row], cell: Any) -> str:
    nets, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("net", "method"))
    by = {(row["net"], row["method"]): cell(row) for row in rows}
    lines = [[f"`{m}`{_per(m)}", *(by.get((n, m), "") for n in nets)] for m in methods]
    return _markdown(["", *(NETS[n].title for n in nets)], lines)


def _per(method: str) -> str:
    names = {
        "occlusion": ", a window",
        "rise": ", a mask",
        "integrated_gradients": ", a step",
        "smoothgrad": ", a sample",
    }
    return names.get(method, "")


def _cost(row: Row) -> str:
    if "ours" not in row["passes"]:
        return "does not apply"
    peer = fastest(row)
    return f"{row['passes']['ours'][1]:.1f}" + (f" ({row['ratios'][peer][1]:.1f}x)" if peer else "")


def _peak(row: Row) -> str:
    memory = row["memory"]
    numbers = [m for who, m in memory.items() if who != "ours" and isinstance(m, int)]
    return _megabytes(memory.get("ours")) + (f" ({_megabytes(min(numbers))})" if numbers else "")


def _seconds(row: Row) -> str:
    return row["refusal"] if "refusal" in row else _spread(row["seconds"])


def _megabytes(value: int | str | None) -> str:
    return "" if value is None or isinstance(value, str) else f"{value / 1e6:.0f}"


def _quartiles(values: Any) -> list[float]:
    return [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))]


def _spread(values: Sequence[float]) -> str:
    low, median, high = values
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*rows, *("| " + " | ".join(c.replace("|", "/") for c in line) + " |" for line in lines)])
