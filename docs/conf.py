"""The site, made of docs/ and the README by scripts/site. Nothing is fetched: fonts and scripts are the theme's own."""

import re
from pathlib import Path

DOCS = Path(__file__).parent
project = "zkc"
author = "the authors of zkc"
version = release = re.search(r'__version__ = "(.+)"', (DOCS.parent / "zkc" / "__init__.py").read_text())[1]

extensions = ["myst_parser"]
# The sources are the whole repository, so that links between docs/ and what is beside it lead somewhere.
include_patterns = ["README.md", "CHANGELOG.md", "docs/**"]
exclude_patterns = ["docs/plan.md"]
root_doc = "docs/index"
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"zkc {version}"
html_copy_source = False
html_show_sphinx = False
templates_path = ["site"]
html_additional_pages = {"index": "start.html"}


def add_navigation(_app, name: str, source: list[str]) -> None:
    """The lists of the first page are the navigation, too."""
    if name != root_doc:
        return
    for title, items in re.findall(r"^## (.+)\n\n((?:- .+\n)+)", source[0], re.MULTILINE):
        pages = [f"/docs/{page}" for page in re.findall(r"\]\(([\w./-]+)\.md\)", items)]
        if title.startswith("Why"):
            pages = [*pages[:-1], *sorted(f"/docs/decisions/{each.stem}" for each in DOCS.glob("decisions/*.md"))]
        source[0] += "\n```{toctree}\n:hidden:\n:caption: %s\n\n%s\n```\n" % (title, "\n".join(pages))


def setup(app) -> None:
    app.connect("source-read", add_navigation)
