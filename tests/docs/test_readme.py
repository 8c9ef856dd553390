"""The README, held to the code: its commands, its Python, its table of methods, its note."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import onnxplain as ox
from onnxplain.cli import main
from onnxplain.imaging.preprocessing import Preprocessing

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands():
    return [line for block in blocks("sh") for line in block.splitlines() if line.startswith("onnxplain ")]


def method_table():
    rows = ["| method | what it computes | options | sums to |", "|---|---|---|---|"]
    sums = {"completeness": "f(x) - f(baseline)", "conservation": "f(x)", None: ""}
    for name, spec in ox.METHODS.items():
        listed = ", ".join(f"`{o.name}`" if o.default is None else f"`{o.name}={o.default}`" for o in spec.options)
        rows.append(f"| `{name}` | {spec.summary} | {listed} | {sums[spec().promise]} |")
    return "\n".join(rows)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder that has models/, and nothing else."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_second_command_is_the_ci():
    assert blocks("sh")[1].strip() == (ROOT / ".ci/run").read_text().splitlines()[-1]


def test_first_command_explains_the_cat(workplace):
    setup, _, command = blocks("sh")[0].strip().rpartition(" && .venv/bin/")
    assert setup == "python3 -m venv .venv && .venv/bin/pip install -q '.[cpu]'"
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "285 (Egyptian cat)" in done.stdout
    assert "\ncat.png: " in done.stdout
    assert (workplace / "cat.png").is_file()


@pytest.mark.parametrize("command", commands())
def test_commands_run(command, workplace):
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    assert (done.exit_code, done.stderr) == (0, "")


def test_python_runs(workplace):
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["attribution"].shape == names["x"].shape
    assert names["logits"].argmax() == names["result"].target[0] == 285


def test_methods_are_listed():
    assert method_table() in README, f"the table should be\n\n{method_table()}"


def test_note_is_one():
    (note,) = blocks("json")
    assert Preprocessing.from_note(json.loads(note)).size == (224, 224)


def test_tools_and_pictures_are_there():
    for name in re.findall(r"`(tools/[\w.]+)`|\((docs/[\w.]+)\)", README):
        assert (ROOT / (name[0] or name[1])).exists(), name
