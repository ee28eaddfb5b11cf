"""One case of bad input."""

from __future__ import annotations

from typing import Callable, Dict, NamedTuple, Optional, Sequence


class Case(NamedTuple):
    """What to run, and what must come of it.

    Attributes:
        words: a tool and its arguments.
        refused: texts that the one line must hold; None where it must not be refused.
        works: it may run to its end.
        check: called when it has; returns what is wrong, or None.
        statuses: other statuses that are right.
        environment: variables to set.
    """

    words: Sequence[object]
    refused: Optional[Sequence[str]] = ()
    works: bool = False
    check: Optional[Callable[[], Optional[str]]] = None
    statuses: Sequence[int] = ()
    environment: Dict[str, str] = {}
