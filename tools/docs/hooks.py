"""What MkDocs does to the pages besides Markdown: formulas become MathML, and two files of the root become pages."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
ROOT_PAGES = {"CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md"}
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the files of the root that are pages, too; their links into docs/ become links between pages."""
    for source, page in ROOT_PAGES.items():
        text = (ROOT / source).read_text("utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw by themselves: no script, nothing to fetch."""

    def formula(match: re.Match[str]) -> str:
        latex = html.unescape(match[2].strip())
        converted = convert(latex, display="block" if match[1] == "div" else "inline")
        if "\\" in converted:
            raise PluginError(f"a command of this formula is unknown to latex2mathml: {latex}")
        return converted

    return FORMULA.sub(formula, content)
