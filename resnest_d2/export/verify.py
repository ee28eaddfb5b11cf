"""Does an exported file compute what the model does?"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import torch
from detectron2.structures import Instances, pairwise_iou
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .graphs import BackboneGraph
from .runtime import ExportedModel

#: Parts of an image's size at which it is compared.
_SCALES = (1.0, 0.8, 0.6)
#: Objects with a lower score may be missing: rounding moves some across the score threshold or past NMS.
CERTAIN = 0.3
#: So many objects without any counterpart differ by more than rounding, however uncertain they are.
_MANY = 5
#: Overlap from which on two objects of a class are taken for the same.
_SAME = 0.5
#: Largest differences: of boxes in pixels, of scores and probabilities, of the part of mask pixels or labels
#: that differ, of features relative to their largest value, of the part of objects that only one model finds:
#: by rounding, one of many may pass non-maximum suppression in place of another.
EXACT = {"missing": 0.02, "box": 0.05, "score": 1e-3, "mask": 1e-3, "labels": 1e-3, "feature": 1e-4}
#: With 8-bit integers.
INT8 = {"missing": 0.1, "box": 16.0, "score": 0.3, "mask": 0.1, "labels": 0.1, "feature": 0.3}


class Comparison(NamedTuple):
    """An image's outputs of the model and of the exported file.

    Attributes:
        image: name.
        size: (height, width) in pixels, as the model sees it.
        objects: how many the model finds; None unless it is a detector.
        errors: largest difference of each kind.
    """

    image: str
    size: Tuple[int, int]
    objects: Any
    errors: Dict[str, float]


def compare(
    model: nn.Module, exported: ExportedModel, images: Sequence[Tuple[str, Tensor]]
) -> Iterator[Comparison]:
    """Compare an exported file with its model on images, in turn at three sizes, and on a ramp of greys.

    Args:
        model: in eval mode, on the CPU.
        images: names, and (C, H, W) images as the model sees them.
    """
    for i in range(count(images) - 1):
        name, image = images[i % len(images)]
        yield _compare(model, exported, name, _scaled(image, _SCALES[i % len(_SCALES)]))
    yield _compare(model, exported, "(a ramp of greys)", _ramp(images[0][1]))


def count(images: Sequence[Any]) -> int:
    """Number of comparisons."""
    return max(len(images), len(_SCALES)) + 1


def check(comparisons: Sequence[Comparison], tolerance: Dict[str, float], file: object) -> None:
    """Raise UserError if a difference exceeds its tolerance."""
    for kind, most in tolerance.items():
        for row in comparisons:
            if not row.errors.get(kind, 0) <= most:  # also if it is NaN
                raise UserError(
                    f"{file} differs from the model: {kind} {row.errors[kind]:.2g} in {row.image}, at most "
                    f"{most:g} is expected; it is not kept; try another --format, or for 8 bits other images"
                )


def table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as text, one line for each image."""
    kinds = [*dict.fromkeys(kind for row in comparisons for kind in row.errors)]
    rows = [
        [
            row.image,
            f"{row.size[1]}x{row.size[0]}",
            "–" if row.objects is None else row.objects,
            *(f"{row.errors[kind]:.1e}" for kind in kinds),
        ]
        for row in comparisons
    ]
    return tabulate(rows, ["image", "size", "objects", *kinds], disable_numparse=True)


def _ramp(like: Tensor) -> Tensor:
    """An image of greys, without objects. In one of a single colour, equal scores would have no order."""
    height, width = like.shape[-2:]
    ramp = torch.linspace(100, 130, height)[:, None] + torch.linspace(0, 30, width)
    return ramp.to(like.dtype).expand_as(like)


def _scaled(image: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return image
    size = [max(1, round(scale * side)) for side in image.shape[-2:]]
    resized = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return resized.round().to(image.dtype)


def _compare(model: nn.Module, exported: ExportedModel, name: str, image: Tensor) -> Comparison:
    size: Tuple[int, int] = tuple(image.shape[-2:])
    if exported.description["part"] == "backbone":
        return Comparison(name, size, None, _compare_features(model, exported, image))
    record = {"image": image, "height": size[0], "width": size[1]}
    with torch.no_grad():
        (one,), (other,) = model([record]), exported([record])
    if "instances" in one:
        found = one["instances"]
        return Comparison(name, size, len(found), compare_objects(found, other["instances"]))
    if "sem_seg" in one:
        differ = one["sem_seg"].argmax(0) != other["sem_seg"].argmax(0)
        return Comparison(name, size, None, {"labels": float(differ.float().mean())})
    return Comparison(name, size, None, {"score": _largest(one["probabilities"] - other["probabilities"])})


def _compare_features(model: nn.Module, exported: ExportedModel, image: Tensor) -> Dict[str, float]:
    graph = BackboneGraph(model)
    with torch.no_grad():
        features = dict(zip(graph.names, graph(image[None].float())))
    outputs = exported.run(image)
    errors = (
        _largest(value - outputs[name]) / max(_largest(value), 1e-6) for name, value in features.items()
    )
    return {"feature": max(errors)}


def compare_objects(one: Instances, other: Instances) -> Dict[str, float]:
    """Match objects of one class by their overlap, and return the largest differences.

    ``missing`` is the part of those with a score of at least :data:`CERTAIN` that has no counterpart.
    """
    pairs = match(one, other)
    certain = [int((found.scores >= CERTAIN).sum()) for found in (one, other)]
    matched = [sum(float(f.scores[p[i]]) >= CERTAIN for p in pairs) for i, f in enumerate((one, other))]
    missing = (sum(certain) - sum(matched)) / max(1, sum(certain))
    if not pairs and max(len(one), len(other)) >= _MANY:
        missing = 1.0
    errors = {"missing": missing, "box": 0.0, "score": 0.0}
    if one.has("pred_masks"):
        errors["mask"] = 0.0
    if not pairs:
        return errors
    i, j = map(list, zip(*pairs))
    errors["box"] = _largest(one.pred_boxes.tensor[i] - other.pred_boxes.tensor[j])
    errors["score"] = _largest(one.scores[i] - other.scores[j])
    sure = one.scores[i] >= CERTAIN
    if "mask" in errors and sure.any():  # outlines of the others are where rounding decides, too
        a, b = one.pred_masks[i][sure], other.pred_masks[j][sure]
        errors["mask"] = float((a != b).sum() / (a | b).sum().clamp(min=1))
    return errors


def match(one: Instances, other: Instances) -> List[Tuple[int, int]]:
    """Pairs of indices of objects that are the same, each at most once, the largest overlap first."""
    overlap = pairwise_iou(one.pred_boxes, other.pred_boxes)
    overlap[one.pred_classes[:, None] != other.pred_classes] = 0
    pairs: List[Tuple[int, int]] = []
    while overlap.numel() and overlap.max() > _SAME:
        i, j = divmod(int(overlap.argmax()), overlap.shape[1])
        pairs.append((i, j))
        overlap[i], overlap[:, j] = 0, 0
    return pairs


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
