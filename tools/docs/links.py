"""Check a built site: every link and anchor leads somewhere, and nothing is loaded from the network."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """The anchors and references of one page.

    Attributes
    ----------
    anchors
        Every ``id`` and ``name``.
    links
        Targets of ``<a href>``.
    fetched
        What a browser loads to show the page: scripts, pictures, styles.
    formulas
        Number of formulas that are still LaTeX.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.formulas = 0
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what one tag names and refers to."""
        values = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := values.get(key))}
        self.formulas += "arithmatex" in (values.get("class") or "")
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        if tag in FETCHED and values.get(FETCHED[tag]):
            self.fetched.append(str(values[FETCHED[tag]]))


def problems(site: Path) -> list[str]:
    """Return one line for each broken link, missing anchor, unconverted formula, and file loaded from the network.

    Parameters
    ----------
    site
        The folder that MkDocs has written.
    """
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site)
        found += [f"{where}: loads {url} from the network" for url in page.fetched if urlsplit(url).netloc]
        found += [f"{where}: a formula was not converted"] * page.formulas
        local = [url for url in (*page.links, *page.fetched) if not urlsplit(url).scheme and not urlsplit(url).netloc]
        for url in local:
            parts = urlsplit(url)
            root = site if parts.path.startswith("/") else path.parent
            target = (root / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{where}: no page for the link {url}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{where}: no anchor for the link {url}")
    return found
