"""Every page's code runs, and what is not run says why."""

from __future__ import annotations

import re

import pytest

from tests.docs import pages


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder that has models/, and nothing else."""
    (tmp_path / "models").symlink_to(pages.ROOT / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(path):
    return str(path.relative_to(pages.ROOT))


@pytest.mark.parametrize("path", [path for path in pages.PAGES if pages.blocks(path)], ids=named)
def test_code_runs(path, workplace):
    pages.run(path)


@pytest.mark.parametrize("path", pages.PAGES, ids=named)
def test_blocks_are_of_known_kinds(path):
    assert {block.language for block in pages.blocks(path)} <= pages.KNOWN


@pytest.mark.parametrize("path", pages.PAGES, ids=named)
def test_what_is_not_run_says_why(path):
    for block in pages.blocks(path):
        every_line = len(pages.commands(block)) == len(block.code.splitlines())
        whole = block.language in ("python", "text", "json", "py") or every_line
        in_ci = path.name == "README.md" and block.code.startswith("python3 -m venv")  # see test_readme
        if block.skipped or not (whole or in_ci):
            assert re.match(r"\*Not run by the tests\b.*(because|: )", block.skipped, re.DOTALL), block.line


def stripped(code):
    """Code without indentation and blank lines."""
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())


SOURCES = [stripped(path.read_text("utf-8")) for path in pages.ROOT.glob("onnxplain/**/*.py")]


@pytest.mark.parametrize("path", pages.PAGES, ids=named)
def test_excerpts_are_from_the_package(path):
    for block in pages.blocks(path):
        if block.language == "py":
            assert any(stripped(block.code) in source for source in SOURCES), block.code


def test_a_wrong_output_is_seen(tmp_path, workplace):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    with pytest.raises(AssertionError, match="prints\n2"):
        pages.run(page)


@pytest.mark.parametrize("path", pages.PAGES, ids=named)
def test_paths_exist(path):
    text = path.read_text("utf-8")
    for name in re.findall(r"`((?:tools|onnxplain|tests|models|docs)/[\w./-]+\w/?)`", text):
        assert (pages.ROOT / name).exists(), name
