"""Build the documentation site into out/site, strictly: a broken link or a warning is an error.

    python -m tools.docs [--write]

Parts of pages are made from the code (see `tools.docs.tables`); ``--write`` writes them anew and builds nothing.
Tests compare them. The extra ``docs`` has what the build needs.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build() -> list[str]:
    """Build the site, and return what is wrong with it."""
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config
    from mkdocs.exceptions import MkDocsException

    from tools.docs.links import problems

    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    config = load_config(str(ROOT / ".mkdocs.yml"))
    try:
        config.plugins.on_startup(command="build", dirty=False)
        build_site(config)
    except MkDocsException as error:
        return [str(error)]
    finally:
        config.plugins.on_shutdown()
    return problems(ROOT / "out" / "site")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the parts of pages that are made from the code")
    if parser.parse_args().write:
        from tools.docs.tables import written

        for path, text in written().items():
            path.write_text(text, "utf-8")
        return
    wrong = build()
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        sys.exit(1)
    print(ROOT / "out" / "site" / "index.html")


if __name__ == "__main__":
    main()
