"""The kinds of problem that the check of a COCO-format dataset knows, and its report."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Dict, List, NoReturn

from ..errors import one_line

NARROW = "image whose shorter side, when resized, rounds to 0"
#: Kinds of problem, and whether training would fail or go silently wrong because of them.
KINDS = {
    "entry is not an object": True,
    "id missing or of the wrong type": True,
    "duplicate image id": True,
    "duplicate annotation id": True,
    "duplicate category id": True,
    "duplicate category name": False,
    "annotation id below 1": False,
    "category name is not a string": True,
    "name is not valid Unicode": True,
    "keypoint names of the wrong type": True,
    "file_name, width or height of the wrong type": True,
    "image listed twice": False,
    "image file missing": True,
    "image file has a slightly different name": True,
    "image file unreadable": True,
    "image of another size": True,
    "image with more than 8 bits per channel": True,
    NARROW: True,
    "unknown image": True,
    "unknown category": True,
    "box missing": True,
    "box of the wrong type": True,
    "number that is not finite": True,
    "box in fractions of the image, not in pixels": True,
    "box within the image's first pixel": False,
    "box without area": False,
    "box outside the image": False,
    "segmentation of the wrong type": True,
    "polygon as pairs of coordinates": True,
    "degenerate polygon": True,
    "polygon far outside the image": True,
    "run-length encoding damaged or of another size": True,
    "mask without pixels": True,
    "mask outside its box": False,
    "box does not match its mask": False,
    "crowd as polygon": False,
    "area missing or not above 0": False,
    "area matches neither the box nor the mask": False,
    "iscrowd missing": False,
    "iscrowd of the wrong type": True,
    "ignore, which detectron2 does not support": True,
    "keypoints missing": False,
    "keypoints of the wrong type": True,
    "keypoints not given as x, y and visibility": True,
    "keypoint outside the image": False,
    "visible keypoints all outside the box": False,
    "keypoint visibility other than 0, 1 or 2": False,
    "num_keypoints is not the number of visible keypoints": False,
    "object annotated twice": False,
}
#: Kinds that may be intended, and that a repaired copy keeps.
KEPT = ("box does not match its mask", "visible keypoints all outside the box")
_EXAMPLES = 5


class Lost(Exception):
    """An entry that cannot be repaired and is left out of the copy; the argument is the kind of problem."""


class Report:
    """Findings of :func:`check_coco`.

    Attributes:
        images, annotations, categories: numbers of entries.
        empty: number of images without annotations, which is not a problem.
        objects: number of annotations that are not crowds.
        without_mask: how many of them have no segmentation.
        encoded: how many of them have a mask as run lengths, for which INPUT.MASK_FORMAT must be bitmask.
        visible: how many of them have a visible keypoint.
        counts: occurrences by kind of problem.
        examples: up to five places by kind.
        notes: oddities of the file as a whole, which no copy can repair.
        lost: number of ``images`` and ``annotations`` left out of a repaired copy, by kind of problem.
    """

    def __init__(self) -> None:
        self.images = self.annotations = self.categories = self.empty = 0
        self.objects = self.without_mask = self.encoded = self.visible = 0
        self.counts: Counter = Counter()
        self.examples: Dict[str, List[str]] = defaultdict(list)
        self.notes: List[str] = []
        self.lost: Dict[str, Counter] = {"images": Counter(), "annotations": Counter()}

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
        return [kind for kind in self.counts if KINDS[kind]]

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

    def __str__(self) -> str:
        lines = [
            f"{self.images} images ({self.empty} without annotations), {self.annotations} annotations, "
            f"{self.categories} categories"
        ]
        if self.encoded:
            lines.append(
                f"{self.encoded} of {self.objects} objects have run-length masks: train on them with "
                "INPUT.MASK_FORMAT bitmask"
            )
        lines += [
            f"{'problem' if KINDS[kind] else 'warning'}: {self.line(kind)}"
            + (" (--fix keeps it, as it may be intended)" if kind in KEPT else "")
            for kind, _ in self.counts.most_common()
        ]
        lines += [f"warning: {note}" for note in self.notes]
        return "\n".join(lines if self.counts or self.notes else [*lines, "no problems found"])
