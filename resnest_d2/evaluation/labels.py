"""User-given names of classes and files as text in pictures and tables."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import Iterator

from ..errors import needs, one_line


def label(name: object, limit: int = 60) -> str:
    """Return a name on one line, without control characters and lone surrogates, which cannot be drawn.

    Args:
        limit: number of characters beyond which a name is cut and ends in an ellipsis.
    """
    text = str(name)[: 4 * limit].encode("utf-8", "replace").decode()
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return (text if len(text) <= limit else text[: limit - 1] + "…") or "(no name)"


def cell(text: object) -> str:
    """Return text as a cell of a Markdown table."""
    return one_line(text).replace("|", "\\|").replace("<", "&lt;")


@contextmanager
def plain_text() -> Iterator[None]:
    """Context in which matplotlib draws text literally: a dollar sign does not start a formula.

    A character that the font lacks is drawn as a box, without a warning.
    """
    with needs("matplotlib", "drawing"):
        import matplotlib
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield
