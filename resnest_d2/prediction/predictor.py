"""A trained model as a function of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_PIL_to_numpy, read_image
from detectron2.structures import Instances
from PIL import Image, ImageOps
from torch import Tensor

from .. import model_zoo
from ..checkpoint import fetch_weights
from ..config import CLASSIFIER
from ..data.loader import CheckedMapper
from ..data.mappers import build_test_transform
from ..engine import load_config
from ..engine.config import find_device
from ..engine.trainer import load_with_classes
from ..errors import OptionError, UserError, check_number, one_line
from ..files import check_readable, expanded
from .classes import find_classes
from .inputs import Input

#: What can be predicted on: a path, an array, an image of Pillow, or what :func:`read_inputs` yields.
AnyImage = Union[str, "os.PathLike[str]", np.ndarray, Image.Image, Input]
_FORMATS = ("RGB", "BGR")


class Prediction(NamedTuple):
    """An image and what the model makes of it.

    Attributes:
        image: as it was given.
        pixels: (H, W, C) in INPUT.FORMAT, turned upright.
        output: see :class:`Predictor`.
    """

    image: Any
    pixels: np.ndarray
    output: Union[Instances, Tensor]


class Predictor:
    """A trained model as a function of images, which sees them as an evaluation does.

    Calling it with an iterable of images returns a generator that yields for each image, in their order,

    - of a detector ``Instances`` in pixels of the image, also of PanopticFPN;
    - of a SemanticSegmentor the label map, (H, W) int64, of the size of the image;
    - of an ImageClassifier the probabilities, (classes,) float32.

    All are on the CPU. Images are paths of files, images of Pillow, or uint8 arrays, (H, W, 3) or (H, W).
    Files and images of Pillow are turned by their EXIF orientation. No more than a batch of images is in
    memory, so the iterable may be endless.

    Args:
        config: a configuration, the path of one, or the name of one in the model zoo.
        weights: MODEL.WEIGHTS. None for the configuration's, or with a name for the authors' trained model.
        array_format: order of the colours in arrays, ``RGB`` or ``BGR``. There is no default, since a wrong
            one goes unnoticed.
        batch_size: most images that are predicted together. Only neighbours that have one size after resizing
            are, since padding would change results. None for the evaluation's number, with which results
            equal its own bit for bit; with others they do up to rounding.
        threshold: objects with a lower score are left out.
        classes: names of the classes; None for those that the checkpoint holds, or else of the
            configuration's dataset.
        device: ``cpu``, ``cuda``, ...; None for the configuration's, or the CPU where there is no GPU.
        allow_random, optimize, half: see :func:`resnest_d2.engine.load_model`.

    Attributes:
        cfg: the configuration, frozen.
        model: the model, in eval mode.
        classes: names of the classes, their ids in files, and metadata for drawing.

    Raises:
        UserError: the weights do not fit the model, or an option cannot work; when iterated, an image cannot
            be used.
    """

    def __init__(
        self,
        config: Union[CfgNode, str, Path],
        weights: Union[str, Path, None] = None,
        *,
        array_format: Optional[str] = None,
        batch_size: Optional[int] = None,
        threshold: float = 0.0,
        classes: Optional[Sequence[str]] = None,
        device: Optional[str] = None,
        allow_random: bool = False,
        optimize: bool = False,
        half: bool = False,
    ) -> None:
        if array_format not in (None, *_FORMATS):
            raise OptionError("array_format", array_format, f"must be {' or '.join(_FORMATS)}")
        if batch_size is not None:
            check_number("batch_size", batch_size, at_least=1)
        check_number("threshold", threshold, at_least=0, at_most=1)
        self.cfg = cfg = _configuration(config, weights, device)
        fetch_weights(cfg, allow_random, "" if allow_random else "with which predictions would be random")
        options = {"allow_random": allow_random, "optimize": optimize, "half": half}
        self.model, trained = load_with_classes(cfg, **options)
        self.model.eval()
        self.classes = find_classes(cfg, trained, classes)
        evaluated = cfg.TEST.IMS_PER_BATCH if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER else 1
        self.batch_size = batch_size or evaluated
        self.array_format, self.threshold = array_format, threshold
        self._transform = build_test_transform(cfg)
        self._map_file = CheckedMapper(
            lambda record: self._map(read_image(record["file_name"], self._format))
        )

    @property
    def _format(self) -> str:
        return self.cfg.INPUT.FORMAT

    def __call__(self, images: Union[AnyImage, Iterable[AnyImage]]) -> Iterator[Union[Instances, Tensor]]:
        """Yield the prediction of each image. A single one counts as a list of one."""
        return (prediction.output for prediction in self.stream(images))

    def stream(
        self,
        images: Union[AnyImage, Iterable[AnyImage]],
        failed: Optional[Callable[[AnyImage, UserError], None]] = None,
    ) -> Iterator[Prediction]:
        """Like calling it, but yield images with their predictions.

        Args:
            failed: called with an image that cannot be used, which is then left out, and the reason. With
                None it is raised, after the predictions of the images before.
        """
        if _is_one(images):
            images = [images]
        batch: List[Tuple[AnyImage, Dict[str, Any]]] = []
        for image in images:
            try:
                record = self.read(image)
            except UserError as e:
                if failed is None:
                    yield from self._predict(batch)
                    raise
                failed(image, e)
                continue
            if batch and batch[0][1]["image"].shape != record["image"].shape:
                yield from self._predict(batch)
                batch = []
            batch.append((image, record))
            if len(batch) == self.batch_size:
                yield from self._predict(batch)
                batch = []
        yield from self._predict(batch)

    def read(self, image: AnyImage) -> Dict[str, Any]:
        """Return the model's input for an image, with its ``pixels``.

        Raises:
            UserError: it cannot be used.
        """
        if isinstance(image, Input):
            image = image.image
        if isinstance(image, (str, os.PathLike)):
            return self._map_file({"file_name": str(check_readable(image))})
        pixels = self._pixels(image)
        try:
            return self._map(pixels)
        except Exception as e:  # augmentations raise anything
            size = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise UserError(f"an image of {size} pixels cannot be used ({one_line(e, 200)})") from None

    def _pixels(self, image: Union[np.ndarray, Image.Image]) -> np.ndarray:
        """Return an image as detectron2 reads a file: (H, W, C) in INPUT.FORMAT."""
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
                raise UserError(
                    f"an array must be (H, W, 3) or (H, W) uint8, got {image.shape} {image.dtype}; convert it"
                )
            if not image.size:
                raise UserError(f"an array of shape {image.shape} holds no pixels; leave it out")
            if image.ndim == 3 and self.array_format is None:
                raise UserError("array_format is None, so colours of arrays are unknown; state RGB or BGR")
            if image.ndim == 3 and self.array_format == "BGR":
                image = image[:, :, ::-1]
            image = Image.fromarray(np.ascontiguousarray(image))
        if not isinstance(image, Image.Image):
            kinds = "a path, an array or an image of Pillow"
            raise UserError(f"an image must be {kinds}, got a {type(image).__name__}")
        if image.mode.startswith(("I", "F")):  # Pillow would clip values above 255
            raise UserError(f"an image has more than 8 bits per channel ({image.mode}); convert it to 8 bits")
        return convert_PIL_to_numpy(ImageOps.exif_transpose(image), self._format)

    def _map(self, pixels: np.ndarray) -> Dict[str, Any]:
        height, width = pixels.shape[:2]
        return {"image": self._transform(pixels), "height": height, "width": width, "pixels": pixels}

    def _predict(self, batch: Sequence[Tuple[AnyImage, Dict[str, Any]]]) -> Iterator[Prediction]:
        if not batch:
            return
        try:
            with torch.no_grad():
                outputs = self.model([record for _, record in batch])
        except torch.OutOfMemoryError:
            shape = "x".join(map(str, batch[0][1]["image"].shape[1:]))
            raise UserError(
                f"GPU: not enough memory for {len(batch)} images of {shape} pixels; a smaller batch size "
                f"({self.batch_size}) or INPUT.MAX_SIZE_TEST ({self.cfg.INPUT.MAX_SIZE_TEST}) needs less"
            ) from None
        for (image, record), output in zip(batch, outputs):
            yield Prediction(image, record["pixels"], self._simplified(output))

    def _simplified(self, output: Dict[str, Any]) -> Union[Instances, Tensor]:
        if "instances" in output:
            instances = output["instances"].to("cpu")
            return instances[instances.scores >= self.threshold] if self.threshold else instances
        if "sem_seg" in output:
            return output["sem_seg"].argmax(0).cpu()
        if "probabilities" in output:
            return output["probabilities"].cpu()
        raise UserError(
            f"MODEL.META_ARCHITECTURE {self.cfg.MODEL.META_ARCHITECTURE} predicts neither objects nor labels "
            "nor classes; use the configuration of a detector, of segmentation or of classification"
        )


def _is_one(images: Any) -> bool:
    """Whether this is an image, not several; a tuple of its own kind is one, too."""
    if isinstance(images, np.ndarray):
        return images.ndim <= 3
    return isinstance(images, (str, os.PathLike, Image.Image, Input))


def load_named(config: Union[str, Path], overrides: Sequence[str] = ()) -> CfgNode:
    """Load a configuration by its path, or by its name in the model zoo with the authors' trained model.

    Args:
        overrides: KEY VALUE pairs.

    Raises:
        UserError: see :func:`load_config`; or there is no trained model, and MODEL.WEIGHTS names none.
    """
    name = os.fspath(config)
    if not name:
        raise UserError("--config-file is missing; name a file, such as a run's config.yaml, or a recipe")
    if os.path.lexists(name) or name.removesuffix(".yaml") not in model_zoo.available():
        return load_config(name, overrides)
    cfg = load_config(model_zoo.get_config_file(name), overrides)
    if "MODEL.WEIGHTS" not in overrides[::2]:
        cfg.defrost()
        cfg.MODEL.WEIGHTS = model_zoo.get_checkpoint_url(name)
        cfg.freeze()
    return cfg


def _configuration(
    config: Union[CfgNode, str, Path], weights: Union[str, Path, None], device: Optional[str]
) -> CfgNode:
    """Return a frozen configuration of its own, with the weights and the device."""
    given = [] if weights is None else ["MODEL.WEIGHTS", os.fspath(weights)]
    cfg = config.clone() if isinstance(config, CfgNode) else load_named(config, given).clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = expanded(os.fspath(weights)) if given else cfg.MODEL.WEIGHTS
    cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
    find_device(cfg, asked=device is not None)
    cfg.freeze()
    return cfg
