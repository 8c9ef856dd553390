"""Installed sizes: bytes of a distribution and of everything that it requires, as installed here."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PEERS = {"captum": ("captum",), "zennit": ("zennit",), "captum and zennit": ("captum", "zennit")}


def sizes() -> dict[str, int | str]:
    """Return bytes by distribution, or the reason why they are unknown."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    package = sum(path.stat().st_size for path in (ROOT / "onnxplain").rglob("*.py"))
    found: dict[str, int | str] = {}
    for name, names in {"onnxplain[cpu]": tuple(wanted), **PEERS}.items():
        try:
            closure: dict[str, int] = {}
            for requirement in names:
                _collect(Requirement(requirement), closure)
            found[name] = sum(closure.values()) + (package if name.startswith("onnxplain") else 0)
        except PackageNotFoundError as error:
            found[name] = f"{error.name} is not installed"
    return found


def _collect(requirement: Requirement, closure: dict[str, int]) -> None:
    """Add a distribution, and what it requires on this machine, to name -> bytes."""
    found = distribution(requirement.name)
    key = found.metadata["Name"].lower().replace("_", "-")
    if key in closure:
        return
    files = [Path(str(found.locate_file(file))) for file in found.files or () if file.suffix != ".pyc"]
    closure[key] = sum(file.stat().st_size for file in files if file.is_file())
    for line in found.requires or ():
        needed = Requirement(line)
        if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in requirement.extras or {""}):
            _collect(needed, closure)
