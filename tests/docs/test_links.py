"""The check of a built site sees each kind of mistake."""

from __future__ import annotations

import pytest

from tools.docs.links import problems

GOOD = '<h1 id="top">x</h1><a href="other.html#part">a</a><a href="#top">b</a><a href="https://example.org">c</a>'


@pytest.fixture
def site(tmp_path):
    (tmp_path / "index.html").write_text(GOOD)
    (tmp_path / "other.html").write_text('<h2 id="part">y</h2><img src="picture.png">')
    (tmp_path / "picture.png").touch()
    return tmp_path


def test_a_good_site_has_no_problems(site):
    assert problems(site) == []


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ('<a href="gone.html">', "index.html: no page for the link gone.html"),
        ('<a href="other.html#gone">', "index.html: no anchor for the link other.html#gone"),
        ('<a href="#gone">', "index.html: no anchor for the link #gone"),
        ('<img src="gone.png">', "index.html: no page for the link gone.png"),
        ('<script src="https://example.org/x.js">', "index.html: loads https://example.org/x.js from the network"),
        ('<link href="//example.org/x.css">', "index.html: loads //example.org/x.css from the network"),
        ('<span class="arithmatex">', "index.html: a formula was not converted"),
    ],
)
def test_mistakes_are_seen(site, mistake, message):
    (site / "index.html").write_text(GOOD + mistake)
    assert problems(site) == [message]
