"""Docstrings as Markdown: what Markdown would read otherwise is rewritten, everything else stays."""

from __future__ import annotations

import pytest

from tools.docs.markdown import as_markdown


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        ("The rule [bach]_.", r"The rule \[bach\]."),
        ("Nothing where [x > 0] [y > 0].", r"Nothing where \[x > 0\] \[y > 0\]."),
        (".. [bach] Bach et al.\n   PLoS ONE.", "- \\[bach\\] Bach et al.\n   PLoS ONE."),
        ("The tree::\n\n    a", "The tree:\n\n    a"),
        ("The tree.\n\n::\n\n    a", "The tree.\n\n\n\n    a"),
        ("In code, ``x[0]`` stays.", "In code, ``x[0]`` stays."),
        ("A [link](page.md) stays.", "A [link](page.md) stays."),
        (">>> x[0]", ">>> x[0]"),
        ("a, *b\n    Both.\n    Yes.\n\nEnd.", "a\n    Both.\n    Yes.\n*b\n    Both.\n    Yes.\n\nEnd."),
        ("a\n    One, two.", "a\n    One, two."),
    ],
)
def test_docstrings_become_markdown(docstring, markdown):
    assert as_markdown(docstring) == markdown


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        ("See `load`.", "See [`load`][onnxplain.load]."),
        ("See `onnxplain.Explainer`.", "See [`onnxplain.Explainer`][onnxplain.Explainer]."),
        ("See `Explainer.export`.", "See [`Explainer.export`][onnxplain.Explainer.export]."),
        ("Code is ``load``, and `loaded` is private.", "Code is ``load``, and `loaded` is private."),
    ],
)
def test_public_names_become_links(docstring, markdown):
    assert as_markdown(docstring, {"load", "Explainer"}) == markdown
