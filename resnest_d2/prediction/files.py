"""Predictions of many files as pictures, videos and JSON."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..config import SEGMENTOR
from ..errors import UserError
from ..evaluation.label_maps import overlay
from ..evaluation.pictures import draw_classes, draw_objects
from ..files import atomic_writer, check_writable
from ..processes import Interrupted
from .inputs import Failed, Input, Source, count_images, read_inputs
from .predictor import Prediction, Predictor
from .video import SUFFIX, video_writer

#: Most classes of an image that are written.
_TOP = 5
Add = Callable[[Prediction], None]


class Outputs(NamedTuple):
    """Where predictions go.

    Attributes:
        pictures: folder for pictures and videos, named like their sources; None for none.
        results: JSON file in COCO's format; None for none.
        overwrite: whether files that are there may be replaced.
    """

    pictures: Optional[Path] = None
    results: Optional[Path] = None
    overwrite: bool = False

    @property
    def folders(self) -> List[Path]:
        """The folders that only predictions are written to."""
        return [*filter(None, [self.pictures]), *([self.labels] if self.results else [])]

    @property
    def labels(self) -> Path:
        """Folder for label maps, beside the JSON file."""
        return self.results.with_name(f"{self.results.stem}_labels")

    def picture(self, source: Source) -> Path:
        return self.pictures / f"{source.stem}{SUFFIX if source.moves else '.png'}"

    def check(self, sources: Sequence[Source], labels: bool) -> None:
        """Raise UserError if a file cannot be written, or is there and may not be replaced.

        Args:
            labels: whether label maps will be written.
        """
        if not (self.pictures or self.results):
            raise UserError("nothing would be written; name a folder in --output, a file in --json, or both")
        targets = [self.picture(source) for source in sources] if self.pictures else []
        if self.results:
            targets.append(self.results)
        for target in targets:
            check_writable(target, "name another place")
            if os.path.lexists(target) and not self.overwrite:
                raise UserError(f"{target} already exists; --overwrite replaces it, or name another place")
        inputs = {os.path.realpath(source.place) for source in sources if not source.is_camera}
        same = next((target for target in targets if os.path.realpath(target) in inputs), None)
        if same:
            raise UserError(f"{same} is one of the inputs, which would be replaced; name another place")
        if self.results and labels:
            check_writable(self.labels / "1.png", "name another place")
            if self.labels.is_dir() and any(self.labels.iterdir()) and not self.overwrite:
                raise UserError(f"{self.labels} is not empty; --overwrite replaces what is in it")


class Summary(NamedTuple):
    """What has been predicted.

    Attributes:
        images: number of image files.
        frames: number of frames of videos and cameras.
        failed: number of files and frames that could not be used.
    """

    images: int
    frames: int
    failed: int


def predict_files(
    predictor: Predictor, sources: Sequence[Source], outputs: Outputs, quiet: bool = False
) -> Summary:
    """Predict on all sources in turn; memory does not grow with their number or length.

    What cannot be used is named on stderr and left out. A camera is read until Ctrl-C.

    Args:
        quiet: show no progress.

    Raises:
        UserError: a file cannot be written, or may not be replaced.
    """
    outputs.check(sources, predictor.cfg.MODEL.META_ARCHITECTURE == SEGMENTOR)
    counts = {"images": 0, "frames": 0, "failed": 0}

    def failed(name: str, error: UserError) -> None:
        counts["failed"] += 1
        reason = str(error) if name in str(error) else f"{name}: {error}"
        tqdm.write(f"left out: {reason}", file=sys.stderr)

    with ExitStack() as stack:
        sinks: List[Add] = []
        if outputs.results:
            sinks.append(stack.enter_context(_results(outputs, predictor)))
        if outputs.pictures:
            sinks.append(stack.enter_context(_pictures(outputs, predictor)))
        total = None if quiet else count_images(sources)
        progress = stack.enter_context(tqdm(total=total, desc="predicting", unit="image", disable=quiet))
        try:
            current: Optional[Source] = None
            for prediction in _predictions(predictor, sources, failed):
                current = prediction.image.source
                for add in sinks:
                    add(prediction)
                counts["images" if prediction.image.frame is None else "frames"] += 1
                progress.update()
        except Interrupted as e:  # the end of a camera's stream, and of what is written of it
            if e.signal != signal.SIGINT or not (current and current.is_camera and current == sources[-1]):
                raise
    return Summary(**counts)


def _predictions(predictor: Predictor, sources: Sequence[Source], failed: Failed) -> Iterator[Prediction]:
    images = read_inputs(sources, failed)
    return predictor.stream(images, lambda image, error: failed(image.name, error))


@contextmanager
def _pictures(outputs: Outputs, predictor: Predictor) -> Iterator[Add]:
    """Write a picture of each image file, and a video of each video."""
    with ExitStack() as video:
        current: Optional[Source] = None
        write: Callable[[np.ndarray], None]

        def add(prediction: Prediction) -> None:
            nonlocal current, write
            image = prediction.image
            if image.source != current:
                video.close()
                current = image.source
                if current.moves:
                    height, width = prediction.pixels.shape[:2]
                    target = video_writer(outputs.picture(current), image.rate, (width, height))
                    write = video.enter_context(target)
            drawn = draw(predictor, prediction)
            if current.moves:
                write(drawn)
            else:
                _save(drawn, outputs.picture(current))

        yield add


def _save(pixels: np.ndarray, target: Path) -> None:
    with atomic_writer(target) as file:
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")


def draw(predictor: Predictor, prediction: Prediction) -> np.ndarray:
    """Draw a prediction over its image, of the same size.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    pixels = convert_image_to_rgb(prediction.pixels, predictor.cfg.INPUT.FORMAT).astype(np.uint8)
    output, classes = prediction.output, predictor.classes
    if isinstance(output, Instances):
        return draw_objects(pixels, output, classes.metadata, jittering=False)
    if _is_label_map(output):
        return overlay(pixels, output.numpy(), classes.metadata.stuff_colors)
    return draw_classes(pixels, [f"{classes.names[i]} {score:.0%}" for i, score in _best(output)])


def _best(probabilities: Tensor) -> List[Tuple[int, float]]:
    """The likeliest classes of an image with their probabilities."""
    best = probabilities.topk(min(_TOP, len(probabilities)))
    return [*zip(best.indices.tolist(), best.values.tolist())]


@contextmanager
def _results(outputs: Outputs, predictor: Predictor) -> Iterator[Add]:
    """Write COCO's lists of categories, annotations and images, entry by entry."""
    classes = predictor.classes
    categories = [{"id": number, "name": name} for number, name in zip(classes.ids, classes.names)]
    # The images are kept in a file of their own until the annotations are complete.
    with atomic_writer(outputs.results) as file, TemporaryFile() as spool:
        file.write(b'{"categories": ' + json.dumps(categories).encode() + b',\n"annotations": [')
        annotations, images = _List(file), _List(spool)

        def add(prediction: Prediction) -> None:
            image: Input = prediction.image
            height, width = prediction.pixels.shape[:2]
            number = images.length + 1
            entry = {"id": number, "file_name": image.source.name, "height": height, "width": width}
            if image.frame is not None:
                entry["frame"] = image.frame
            if _is_label_map(prediction.output):
                target = _label_map(outputs, image)
                many = len(classes.names) > 256
                _save(prediction.output.numpy().astype(np.uint16 if many else np.uint8), target)
                entry["sem_seg_file_name"] = target.relative_to(outputs.results.parent).as_posix()
            images.add(entry)
            for annotation in _annotations(prediction.output, classes.ids):
                annotations.add({"id": annotations.length + 1, **annotation, "image_id": number})

        yield add
        file.write(b'],\n"images": [')
        spool.seek(0)
        shutil.copyfileobj(spool, file)
        file.write(b"]}\n")


class _List:
    """The entries of a JSON list, written to a file one by one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.length = file, 0

    def add(self, entry: Dict[str, Any]) -> None:
        self._file.write((b",\n" if self.length else b"\n") + json.dumps(entry).encode())
        self.length += 1


def _is_label_map(output: Union[Instances, Tensor]) -> bool:
    return isinstance(output, Tensor) and output.dim() == 2


def _label_map(outputs: Outputs, image: Input) -> Path:
    if image.frame is None:
        return outputs.labels / f"{image.source.stem}.png"
    return outputs.labels / image.source.stem / f"{image.frame:06d}.png"


def _annotations(output: Union[Instances, Tensor], ids: Sequence[int]) -> List[Dict[str, Any]]:
    """Return COCO's entries of an image: one for each object, or for each of the likeliest classes."""
    if _is_label_map(output):
        return []
    if isinstance(output, Tensor):
        return [{"category_id": ids[label], "score": score} for label, score in _best(output)]
    if output.has("pred_keypoints"):  # moved in place by half a pixel, as COCO's format has it
        output = Instances(output.image_size, **output.get_fields())
        output.pred_keypoints = output.pred_keypoints.clone()
    entries = instances_to_coco_json(output, 0)
    for entry in entries:
        mask = entry.get("segmentation")
        area = float(mask_util.area(mask)) if mask else entry["bbox"][2] * entry["bbox"][3]
        entry.update(category_id=ids[entry["category_id"]], area=area, iscrowd=0)
    return entries
