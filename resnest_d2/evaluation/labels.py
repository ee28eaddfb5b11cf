"""Names that users gave to classes and files, as texts in pictures."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import Iterator

from ..errors import needs


def label(name: object, limit: int = 60) -> str:
    """A name on one line, without control characters or lone surrogates, which fonts and files refuse.

    Args:
        limit: characters; a longer one is cut, and ends in an ellipsis.
    """
    text = str(name)[: 4 * limit].encode("utf-8", "replace").decode()
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return (text if len(text) <= limit else text[: limit - 1] + "…") or "(no name)"


@contextmanager
def plain_text() -> Iterator[None]:
    """A block in which matplotlib draws texts as they are: a dollar sign begins no formula.

    A character that the font lacks is drawn as a box, without a warning for each.
    """
    with needs("matplotlib", "drawing"):
        import matplotlib
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield
