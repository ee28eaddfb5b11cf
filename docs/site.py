"""What `make docs` shows beside these pages: the README as the first one, and files that are linked to."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
#: Pages that lie at the top of the repository, where its readers look for them.
PAGES = {"index.md": "README.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, source in PAGES.items():
        # On the site all pages lie side by side.
        text = (ROOT / source).read_text().replace("](docs/", "](")
        files.append(File.generated(config, name, content=text.replace("](README.md", "](index.md")))
    examples = (ROOT / "examples").glob("[!_]*")  # not Python's cache
    for path in sorted([*(ROOT / "configs").rglob("*.yaml"), *examples]):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    markdown = re.sub(r"\]\(\.\./(configs|examples)/", r"](\1/", markdown)
    return markdown.replace("](../README.md", "](index.md")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return re.sub(r":(?:class|func|meth|mod|data|attr):(?=<code>)", "", html)  # Sphinx's, of the docstrings
