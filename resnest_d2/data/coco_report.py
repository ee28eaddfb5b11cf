"""The kinds of problem that the check of a COCO-format dataset knows, and its report."""

from __future__ import annotations

from typing import List

from .findings import OF_IMAGES, Findings

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
    "image of another size": True,
    **OF_IMAGES,
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


class Report(Findings):
    """Findings of :func:`check_coco`.

    Attributes:
        images, annotations, categories: numbers of entries.
        empty: number of images without annotations, which is not a problem.
        objects: number of annotations that are not crowds.
        without_mask: how many of them have no segmentation.
        encoded: how many of them have a mask as run lengths, for which INPUT.MASK_FORMAT must be bitmask.
        visible: how many of them have a visible keypoint.
    """

    kinds, kept = KINDS, KEPT

    def __init__(self) -> None:
        super().__init__("images", "annotations")
        self.images = self.annotations = self.categories = self.empty = 0
        self.objects = self.without_mask = self.encoded = self.visible = 0

    def summary(self) -> List[str]:
        lines = [
            f"{self.images} images ({self.empty} without annotations), {self.annotations} annotations, "
            f"{self.categories} categories"
        ]
        if self.encoded:
            lines.append(
                f"{self.encoded} of {self.objects} objects have run-length masks: train on them with "
                "INPUT.MASK_FORMAT bitmask"
            )
        return lines
