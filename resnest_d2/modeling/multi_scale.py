"""Multi-scale, flipped, sliding-window testing of semantic segmentation, as in the authors' test code."""

from __future__ import annotations

import math
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import read_image
from detectron2.modeling import GeneralizedRCNNWithTTA, SemanticSegmentor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..config import SEGMENTOR
from .precision import at_least_float32

#: Most scores in a batch of windows: 512 MB in float32.
_MAX_SCORES = 2**27
#: Most pixels in a batch of windows, which bounds the feature maps: 4 windows of 768 pixels.
_MAX_PIXELS = 4 * 768**2
#: How many times as much a GPU is given, which is faster with larger batches.
_ON_GPU = 4
#: Sum of two scores above which ``exp`` would be infinite in float32.
_LARGEST = 80.0


def with_test_time_augmentation(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wrap a model for TEST.AUG: detectron2's wrapper for detectors, and ours for a SemanticSegmentor."""
    if cfg.MODEL.META_ARCHITECTURE == SEGMENTOR:
        return SemanticSegmentorWithTTA(cfg, model)
    return GeneralizedRCNNWithTTA(cfg, model)


class SemanticSegmentorWithTTA(nn.Module):
    """A :class:`SemanticSegmentor` that averages over scales, mirrored images and overlapping windows.

    For each scale, the image is resized for its longer side to be ``scale * long_size``. Windows of
    ``window`` pixels slide over it by two thirds of their size; beyond the image they are black. Scores of a
    window and its mirror image are added; their exponentials are averaged where windows overlap, resized to
    the image's own size, and added up over scales.

    Args:
        model: the model, whose head has an output of the size of its input.
        scales: factors of ``long_size``.
        long_size: longer side of the image in pixels at scale 1.
        window: height and width of the windows in pixels.
        flip: also use mirrored images.
        image_format: of the images, for :func:`detectron2.data.detection_utils.read_image`.

    Source: ``MultiEvalModule`` of PyTorch-Encoding.
    """

    @configurable
    def __init__(
        self,
        model: SemanticSegmentor,
        *,
        scales: Sequence[float],
        long_size: int,
        window: int,
        flip: bool = True,
        image_format: str = "RGB",
    ) -> None:
        super().__init__()
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.scales, self.long_size, self.window, self.flip = tuple(scales), long_size, window, flip
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode, model: SemanticSegmentor) -> Dict[str, Any]:
        augmentation = cfg.TEST.AUG
        return {
            "model": model,
            "scales": augmentation.SCALES,
            "long_size": augmentation.LONG_SIZE,
            "window": augmentation.WINDOW,
            "flip": augmentation.FLIP,
            "image_format": cfg.INPUT.FORMAT,
        }

    def forward(self, batched_inputs: List[Dict[str, Any]]) -> List[Dict[str, Tensor]]:
        """Predict the (classes, height, width) ``sem_seg`` of each image, with positive scores.

        Args:
            batched_inputs: as for the model. Images that have been resized are read again from their files.
        """
        return [{"sem_seg": self._segment(self._original(inputs))} for inputs in batched_inputs]

    def _original(self, inputs: Dict[str, Any]) -> Tensor:
        """Return the image at its own size, (C, H, W)."""
        image = inputs["image"]
        size = inputs.get("height", image.shape[1]), inputs.get("width", image.shape[2])
        if tuple(image.shape[1:]) != size:
            array = read_image(inputs["file_name"], self.image_format)
            image = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        return image

    @torch.no_grad()
    def _segment(self, image: Tensor) -> Tensor:
        model = self.model
        image = (image.to(model.device) - model.pixel_mean) / model.pixel_std
        total: Any = 0
        for scale in self.scales:
            scores = self._at_size(_resize(image, _size(image.shape[1:], math.ceil(self.long_size * scale))))
            total = total + _resize(scores, image.shape[1:])
        return total

    def _at_size(self, image: Tensor) -> Tensor:
        """Return the scores of an image, averaged over windows."""
        height, width = image.shape[1:]
        black = -self.model.pixel_mean / self.model.pixel_std
        tall, wide = max(height, self.window), max(width, self.window)
        padded = black.expand(-1, tall, wide).clone()
        padded[:, :height, :width] = image
        places = [(top, left) for top in self._starts(tall) for left in self._starts(wide)]
        total, count = None, image.new_zeros(tall, wide)
        for some, scores in self._in_batches(padded, places, black):
            if total is None:
                total = scores.new_zeros(scores.shape[1], tall, wide)
            for (top, left), window in zip(some, scores):
                part = total[:, top : top + self.window, left : left + self.window]
                part += window[:, : part.shape[1], : part.shape[2]]
                count[top : top + self.window, left : left + self.window] += 1
        return total.div_(count)[:, :height, :width]

    def _starts(self, length: int) -> List[int]:
        """Return where windows begin along a side of this length; the last may reach beyond it."""
        stride = int(self.window * 2 / 3)
        return [i * stride for i in range(math.ceil((length - self.window) / stride) + 1)]

    def _in_batches(
        self, image: Tensor, places: List[Tuple[int, int]], black: Tensor
    ) -> Iterator[Tuple[List[Tuple[int, int]], Tensor]]:
        """Yield some of the places with the (N, classes, window, window) scores of their windows."""
        done, size = 0, 1
        while done < len(places):
            some = places[done : done + size]
            windows = black.expand(len(some), -1, self.window, self.window).clone()
            for window, (top, left) in zip(windows, some):
                part = image[:, top : top + self.window, left : left + self.window]
                window[:, : part.shape[1], : part.shape[2]] = part
            scores = self._scores(windows)
            if self.flip:
                scores = scores + self._scores(windows.flip(3)).flip(3)
            yield some, scores.clamp(max=_LARGEST).exp()
            done += len(some)
            # The first batch of one window tells the number of classes.
            most = min(_MAX_SCORES // scores[0].numel(), _MAX_PIXELS // self.window**2)
            size = max(1, most * (_ON_GPU if windows.is_cuda else 1))

    def _scores(self, windows: Tensor) -> Tensor:
        scores, _ = self.model.sem_seg_head(self.model.backbone(windows))
        # float16 cannot hold their exponentials.
        return at_least_float32(scores[:, :, : self.window, : self.window])


def _size(size: Sequence[int], long: int) -> Tuple[int, int]:
    """Return height and width of an image of this size whose longer side is resized to ``long``."""
    height, width = size
    if height > width:
        return long, max(1, int(width * long / height + 0.5))
    return max(1, int(height * long / width + 0.5)), long


def _resize(image: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(image[None], tuple(size), mode="bilinear", align_corners=True)[0]
