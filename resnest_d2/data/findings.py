"""What a check of a dataset finds: kinds of problem, how often, and where."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Dict, List, Mapping, NoReturn, Sequence

from ..errors import one_line

NARROW = "image whose shorter side, when resized, rounds to 0"
#: Kinds of problem of an image file, for :attr:`Findings.kinds`.
OF_IMAGES = {
    "image file unreadable": True,
    "image with more than 8 bits per channel": True,
    NARROW: True,
}
_EXAMPLES = 5


class Lost(Exception):
    """An entry that cannot be repaired and is left out of the copy; the argument is the kind of problem."""


class Findings:
    """Counts of problems, with examples.

    Args:
        entries: what a repaired copy may leave out, such as ``images``.

    Attributes:
        kinds: kinds of problem, and whether training would fail or go silently wrong because of them.
        kept: kinds that may be intended, and that a repaired copy keeps.
        counts: occurrences by kind of problem.
        examples: up to five places by kind.
        notes: oddities of the dataset as a whole, which no copy can repair.
        lost: number of entries left out of a repaired copy, by kind of problem.
    """

    kinds: Mapping[str, bool] = {}
    kept: Sequence[str] = ()

    def __init__(self, *entries: str) -> None:
        self.counts: Counter = Counter()
        self.examples: Dict[str, List[str]] = defaultdict(list)
        self.notes: List[str] = []
        self.lost: Dict[str, Counter] = {name: Counter() for name in entries}

    def add(self, kind: str, where: str) -> None:
        self.counts[kind] += 1
        if len(self.examples[kind]) < _EXAMPLES:
            self.examples[kind].append(one_line(where, 200))  # names may hold anything

    def give_up(self, kind: str, where: str) -> NoReturn:
        """Add a problem that cannot be repaired.

        Raises:
            Lost: always.
        """
        self.add(kind, where)
        raise Lost(kind)

    @property
    def fatal(self) -> List[str]:
        """Kinds found that would make training fail or go wrong."""
        return [kind for kind in self.counts if self.kinds[kind]]

    def line(self, kind: str) -> str:
        """Return how often a kind of problem was found, and where."""
        count = self.counts[kind]
        shown = ", ".join(self.examples[kind]) + (", ..." if count > _EXAMPLES else "")
        return f"{count} x {kind}: {shown}"

    def losses(self) -> str:
        """Summarise in one line what a repaired copy leaves out; empty if nothing."""
        return "; ".join(
            f"{sum(kinds.values())} {name} ({', '.join(f'{n} x {kind}' for kind, n in kinds.most_common())})"
            for name, kinds in self.lost.items()
            if kinds
        )

    def summary(self) -> List[str]:
        """Return lines about the dataset as a whole that are no findings."""
        return []

    def __str__(self) -> str:
        lines = [
            f"{'problem' if self.kinds[kind] else 'warning'}: {self.line(kind)}"
            + (" (--fix keeps it, as it may be intended)" if kind in self.kept else "")
            for kind, _ in self.counts.most_common()
        ]
        lines += [f"warning: {note}" for note in self.notes]
        return "\n".join([*self.summary(), *(lines or ["no problems found"])])
