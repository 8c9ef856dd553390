"""The README: short, its commands those of the CI, its links and pictures in place."""

from __future__ import annotations

import re
import shlex

from click.testing import CliRunner

from onnxplain.cli import main
from tests.docs import pages
from tests.docs.test_pages import workplace as workplace

README = pages.ROOT / "README.md"
TEXT = README.read_text("utf-8")
EXPLAIN, TEST, BUILD = [
    block.code.strip() for block in pages.blocks(README) if block.code.startswith("python3 -m venv")
]


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 150


def test_first_command_explains_the_cat(workplace):
    setup, _, command = EXPLAIN.rpartition(" && .venv/bin/")
    assert setup == "python3 -m venv .venv && .venv/bin/pip install -q '.[cpu]'"
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "285 (Egyptian cat)" in done.stdout
    assert "\ncat.png: " in done.stdout
    assert (workplace / "cat.png").is_file()


def test_the_ci_runs_the_tests_and_builds_the_site():
    assert (pages.ROOT / ".ci/run").read_text().splitlines()[-2:] == [TEST, BUILD]


def test_relative_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (pages.ROOT / link).exists(), link
