"""The parts of pages that are made from the code say what it says, and leave no method out."""

from __future__ import annotations

import re

import pytest

import onnxplain as ox
from onnxplain.methods.spec import FAMILIES
from tests.docs import pages
from tools.docs import tables

WRITTEN = tables.written()


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_pages_are_up_to_date(path):
    assert path.read_text("utf-8") == WRITTEN[path], "run python -m tools.docs --write"


def test_every_family_has_a_page_with_a_picture():
    for family in FAMILIES:
        text = (pages.DOCS / "methods" / f"{family}.md").read_text("utf-8")
        assert f"<!-- methods: {family} -->" in text
        assert f"]({family}.jpg)" in text
        assert (pages.DOCS / "methods" / f"{family}.jpg").is_file()


def test_every_method_has_a_section():
    headings = {name for path in WRITTEN for name in re.findall(r"^## `(\w+)`$", path.read_text("utf-8"), re.MULTILINE)}
    assert headings == set(ox.METHODS)


def test_a_changed_page_is_seen(tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    page = tmp_path / "methods" / "index.md"
    page.write_text("<!-- index -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    assert tables.written()[page] != page.read_text()
