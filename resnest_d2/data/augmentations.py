"""Augmentation of the segmentation recipes: scale, pad and crop."""

from __future__ import annotations

from typing import List, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, PadTransform, Transform
from PIL import Image, ImageFilter


def scale_and_crop(cfg: CfgNode) -> List[T.Augmentation]:
    """Make the augmentation of INPUT.SCALE_CROP: mirror, resize, pad, crop, blur.

    Source: the segmentation recipes of PyTorch-Encoding, and for the blur GluonCV's.
    """
    options, direction = cfg.INPUT.SCALE_CROP, cfg.INPUT.RANDOM_FLIP
    sides = {"horizontal": direction == "horizontal", "vertical": direction == "vertical"}
    return [
        *([T.RandomFlip(**sides)] if direction != "none" else []),
        ResizeLongestEdge(options.LONG_SIZE),
        PadToSize(options.CROP_SIZE, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE),
        T.RandomCrop("absolute", (options.CROP_SIZE, options.CROP_SIZE)),
        *([RandomBlur(options.BLUR_PROB)] if options.BLUR_PROB else []),
    ]


class ResizeLongestEdge(T.Augmentation):
    """Resize for the longer side to have a random length, keeping the proportions.

    Args:
        lengths: the least and the greatest length in pixels.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)

    def get_transform(self, image: np.ndarray) -> Transform:
        least, most = self.lengths
        height, width = image.shape[:2]
        scale = np.random.randint(least, most + 1) / max(height, width)
        sides = (max(1, int(side * scale + 0.5)) for side in (height, width))
        return T.ResizeTransform(height, width, *sides, Image.BILINEAR)


class PadToSize(T.Augmentation):
    """Pad images smaller than ``size`` in height or width, at the right and below, with black pixels.

    Args:
        size: least height and width in pixels.
        ignore_value: label of the added pixels.
    """

    def __init__(self, size: int, ignore_value: int) -> None:
        self.size, self.ignore_value = size, ignore_value

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        below, right = max(0, self.size - height), max(0, self.size - width)
        if not below and not right:
            return NoOpTransform()
        return PadTransform(0, 0, right, below, width, height, pad_value=0, seg_pad_value=self.ignore_value)


class RandomBlur(T.Augmentation):
    """Blur images with a Gaussian whose radius is between 0 and 1 pixels.

    Args:
        probability: of blurring an image.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def get_transform(self, image: np.ndarray) -> Transform:
        if np.random.random() >= self.probability:
            return NoOpTransform()
        blur = ImageFilter.GaussianBlur(np.random.random())
        if image.shape[2:] == (1,):  # which Pillow does not know
            pil = T.PILColorTransform(lambda grey: grey.filter(blur))
            return T.ColorTransform(lambda pixels: pil.apply_image(pixels[..., 0])[..., None])
        return T.PILColorTransform(lambda colours: colours.filter(blur))
