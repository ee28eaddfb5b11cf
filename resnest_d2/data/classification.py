"""Images of a classifier: the augmentation of the authors' recipe, and their crop in testing."""

from __future__ import annotations

from typing import Any, Callable, Dict, List

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

#: Principal components of the colours of ImageNet's pixels, RGB in rows, and their standard deviations.
#: Source: AlexNet's, as published with fb.resnet.torch.
_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float64
)
_DEVIATIONS = np.array([55.46, 4.794, 1.148])
_INTERPOLATION = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}


class ClassificationMapper:
    """Read an image and transform it.

    Args:
        transform: of PIL images, to one of the size that the model takes.
        image_format: of the result: RGB, BGR or L.
    """

    def __init__(self, transform: Callable[[Image.Image], Image.Image], image_format: str) -> None:
        self._transform, self._format = transform, image_format

    def __call__(self, record: Dict[str, Any]) -> Dict[str, Any]:
        """Return the record with ``image``, (C, H, W) uint8."""
        # Turned by its EXIF orientation, as everywhere in detectron2.
        return {**record, "image": self.transform(read_image(record["file_name"], self._format))}

    def transform(self, pixels: np.ndarray) -> Tensor:
        """Transform an image, (H, W, C) uint8 in the mapper's format, to (C, h, w)."""
        if self._format == "L":
            return as_tensor(np.asarray(self._transform(Image.fromarray(pixels[..., 0])))[..., None])
        step = -1 if self._format == "BGR" else 1  # transforms know RGB
        image = self._transform(Image.fromarray(np.ascontiguousarray(pixels[..., ::step])))
        return as_tensor(np.asarray(image)[..., ::step])


def as_tensor(image: np.ndarray) -> Tensor:
    """Return an image, (H, W, C), as a tensor of its own, (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def build_classification_mapper(cfg: CfgNode, train: bool) -> ClassificationMapper:
    """Build the mapper of INPUT.CLASSIFICATION."""
    transform = train_transform(cfg) if train else CenterCrop(cfg.INPUT.CLASSIFICATION.TEST_CROP)
    return ClassificationMapper(transform, cfg.INPUT.FORMAT)


def train_transform(cfg: CfgNode) -> Callable[[Image.Image], Image.Image]:
    """Make the augmentation of INPUT.CLASSIFICATION, in the order of the authors' training code.

    AutoAugment sees the whole image, before the crop.
    """
    options, direction = cfg.INPUT.CLASSIFICATION, cfg.INPUT.RANDOM_FLIP
    interpolation = _INTERPOLATION[options.TRAIN_INTERPOLATION]
    parts: List[Callable] = []
    if options.AUTO_AUGMENT:
        parts.append(v2.AutoAugment(interpolation=v2.InterpolationMode.BICUBIC))
    area = (options.TRAIN_AREA, 1.0)
    parts.append(v2.RandomResizedCrop(options.TRAIN_CROP, scale=area, interpolation=interpolation))
    if direction != "none":
        parts.append(v2.RandomHorizontalFlip() if direction == "horizontal" else v2.RandomVerticalFlip())
    if options.COLOR_JITTER:
        parts.append(v2.ColorJitter(*[options.COLOR_JITTER] * 3))
    if options.LIGHTING and cfg.INPUT.FORMAT != "L":
        parts.append(Lighting(options.LIGHTING))
    return v2.Compose(parts)


class Lighting:
    """Add a random colour to all pixels, along the principal components of the colours of ImageNet.

    Args:
        deviation: standard deviation of the random factors of the components.

    Source: Krizhevsky et al. 2012, section 4.1.
    """

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation

    def __call__(self, image: Image.Image) -> Image.Image:
        factors = torch.normal(0.0, self.deviation, (3,)).numpy()
        colour = _COMPONENTS @ (factors * _DEVIATIONS)
        table = np.arange(256) + colour[:, None]  # by channel and value: faster than adding to all pixels
        return image.point(table.round().clip(0, 255).astype(np.uint8).ravel().tolist())


class CenterCrop:
    """Cut the central square out, and resize it with bicubic interpolation.

    Args:
        size: height and width of the result in pixels. The square's side is size / (size + 32) of the image's
            shorter side.

    Source: the authors' evaluation code, ``scripts/torch/verify.py`` of zhanghang1989/ResNeSt.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        side = self.size / (self.size + 32) * min(width, height)
        left, top = round((width - side) / 2), round((height - side) / 2)
        square = image.crop((left, top, left + side, top + side))
        return square.resize((self.size, self.size), Image.Resampling.BICUBIC)
