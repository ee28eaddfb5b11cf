"""Class activation maps: where an image speaks for a detection or a class."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..config import CLASSIFIER, SEGMENTOR
from ..errors import UserError, nearest
from ..modeling.classification import SCORES
from .images import Sample, class_names, samples

#: The map of models without detections, unless another is named.
_DEFAULT = "res5"


@dataclass(frozen=True)
class Explanation:
    """A map of an image, or why there is none.

    Attributes:
        file: name of the image.
        what: what is explained, such as ``dog 97 %``; empty if ``problem`` is not.
        layer: the feature map that it was computed from.
        pixels: (H, W, 3) uint8, RGB: the image as the model sees it.
        heat: (H, W) from 0 to 1, or None.
        box: x0, y0, x1, y1 of a detection in pixels.
        problem: why there is no map.
    """

    file: Path
    what: str = ""
    layer: str = ""
    pixels: Optional[np.ndarray] = None
    heat: Optional[np.ndarray] = None
    box: Optional[Tuple[float, ...]] = None
    problem: str = ""


class _Target(NamedTuple):
    """A score to explain, with its name and box."""

    score: Tensor
    what: str
    box: Optional[Tuple[float, ...]] = None


class _Map(NamedTuple):
    """A feature map from which the rest of the network was computed, (1, C, h, w)."""

    layer: str
    value: Tensor


def layer_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """LayerCAM: activations weighted by what they add to a score, each by its own positive gradient.

    Args:
        activation: (C, h, w)
        gradient: (C, h, w), of the score by the activation.

    Returns:
        (h, w) from 0 to 1, the largest value being 1; all 0 if nothing speaks for the score.

    Source: Jiang et al., LayerCAM: Exploring Hierarchical Class Activation Maps for Localization, IEEE
    Transactions on Image Processing 2021, equations 7 to 9.
    """
    heat = (gradient.clamp(min=0) * activation).sum(0).clamp(min=0)
    return heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)


def explain_images(
    cfg: CfgNode,
    model: nn.Module,
    dataset: str,
    num_images: int,
    *,
    layer: Optional[str] = None,
    detection: int = 1,
    class_name: Optional[str] = None,
) -> List[Explanation]:
    """Make a map for each of some images, evenly spaced in a dataset.

    Args:
        model: a model with its weights; it is put into eval mode.
        layer: name of a feature of the backbone or of a module; None for the pyramid level that a detection
            came from, and for res5 of other models.
        detection: which one to explain, by descending score from 1 on.
        class_name: explain this class, or detections of it; None for any detection, and else for the class
            that a classifier predicts and the one that most pixels have in a segmentation.

    Raises:
        UserError: there is no such layer, class or detection, or an image cannot be used.
    """
    names = class_names(cfg, dataset)
    if class_name is not None and class_name not in names:
        raise UserError(f"--class: {dataset} has no class {class_name!r}; {nearest(class_name, names)}")
    only = None if class_name is None else names.index(class_name)
    if cfg.MODEL.META_ARCHITECTURE in (CLASSIFIER, SEGMENTOR):
        layer = layer or _DEFAULT
    model.eval()
    explainer = _Explainer(cfg, model, names, layer, detection - 1, only)
    explained, most = [], 0
    for sample in samples(cfg, dataset, num_images, "class activation maps"):
        explanation, found = explainer.explain(sample)
        explained.append(explanation)
        most = max(most, found)
    if not any(explanation.what for explanation in explained):
        images, of = len(explained), "" if class_name is None else f" of {class_name}"
        if cfg.MODEL.META_ARCHITECTURE == SEGMENTOR:
            raise UserError(
                f"--class {class_name}: no pixel of {images} images is predicted as it; name another"
            )
        raise UserError(
            f"--detection {detection}: the model finds at most {most}{of} in each of {images} images; lower "
            "it, or SCORE_THRESH_TEST of the configuration"
        )
    return explained


class _Explainer:
    """Makes maps with one model. For arguments see :func:`explain_images`; numbers begin at 0."""

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        names: Sequence[str],
        layer: Optional[str],
        detection: int,
        only: Optional[int],
    ) -> None:
        self._model, self._names, self._layer = model, names, layer
        self._detection, self._only = detection, only
        self._format = cfg.INPUT.FORMAT
        if layer is not None:
            _find(model, layer)

    def explain(self, sample: Sample) -> Tuple[Explanation, int]:
        """Return the map of an image, and the number of its detections."""
        with _frozen(self._model), torch.enable_grad(), _tapped(self._model, self._layer) as taps:
            (output,) = self._model([sample.inputs])
            target, found, problem = self._target(output, taps)
            if target is None:
                return Explanation(sample.file, problem=problem), found
            chosen, gradient = _gradient(target.score, taps.maps, self._layer)
        heat = layer_cam(chosen.value.detach()[0].float(), gradient[0].float())
        height, width = sample.inputs["image"].shape[1:]
        # What the network sees is padded on the right and below.
        heat = F.interpolate(heat[None, None], taps.size, mode="bilinear", align_corners=False)
        return Explanation(
            sample.file,
            target.what,
            chosen.layer,
            _rgb(sample.inputs["image"], self._format),
            heat[0, 0, :height, :width].cpu().numpy(),
            target.box,
            "" if heat.any() else f"nothing in {chosen.layer} speaks for {target.what}",
        ), found

    def _target(self, output: Dict[str, Any], taps: _Taps) -> Tuple[Optional[_Target], int, str]:
        """The score to explain, or None and why there is none; and the number of detections."""
        if "probabilities" in output:
            best = int(output["probabilities"].argmax()) if self._only is None else self._only
            # Of the scores before the softmax, as the gradient of a probability near 1 vanishes.
            name = f"{self._names[best]} {output['probabilities'][best].item():.0%}"
            return _Target(taps.outputs[SCORES][0, best], name), 0, ""
        if "instances" in output:
            found = output["instances"]
            if self._only is not None:
                found = found[found.pred_classes == self._only]
            if len(found) <= self._detection:
                return None, len(found), f"no detection {self._detection + 1}: the model finds {len(found)}"
            which = int(found.scores.argsort(descending=True)[self._detection])
            score, box = found.scores[which], found.pred_boxes.tensor[which].detach().tolist()
            name = f"{self._names[int(found.pred_classes[which])]} {score.item():.0%}"
            return _Target(score, name, tuple(box)), len(found), ""
        if "sem_seg" not in output:
            raise UserError("the model predicts neither objects, labels nor a class, so there is no score")
        predicted = output["sem_seg"].argmax(0)
        best = int(predicted.flatten().bincount().argmax()) if self._only is None else self._only
        pixels = predicted == best
        if not pixels.any():
            return None, 0, f"no pixel is predicted as {self._names[best]}"
        name = f"{self._names[best]}, {pixels.float().mean().item():.1%} of the pixels"
        return _Target(output["sem_seg"][best][pixels].mean(), name), 0, ""


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Without gradients of the parameters, which would keep all activations before the map."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class _Taps:
    """Hooks of one pass that make feature maps the beginning of the graph.

    Attributes:
        maps: what the rest of the pass was computed from, in the order of the calls.
        size: height and width in pixels of the padded image.
        outputs: of the backbone.
    """

    def __init__(self) -> None:
        self.maps: List[_Map] = []
        self.size: Tuple[int, int] = (0, 0)
        self.outputs: Dict[str, Tensor] = {}

    def begin(self, layer: str, value: Any) -> Tensor:
        """Return a copy of a map, from which gradients lead to the map and no further."""
        if not isinstance(value, Tensor) or value.dim() != 4 or len(value) != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"--layer {layer} has no map of the image (its output is {shape}); name another")
        leaf = value.detach().requires_grad_(True)
        self.maps.append(_Map(layer, leaf))
        return leaf.clone()  # what follows may work in place


@contextmanager
def _tapped(model: nn.Module, layer: Optional[str]) -> Iterator[_Taps]:
    """Tap a layer in the passes of the block; None for all features of the backbone."""
    taps = _Taps()
    module, feature = (model.backbone, None) if layer is None else _find(model, layer)

    def see_input(_: nn.Module, arguments: Tuple[Any, ...]) -> None:
        taps.size = tuple(arguments[0].shape[2:])

    def see_output(_: nn.Module, arguments: Any, outputs: Dict[str, Tensor]) -> None:
        taps.outputs = outputs

    def tap(_: nn.Module, arguments: Any, output: Any) -> Any:
        if module is not model.backbone:
            return taps.begin(layer, output)
        # A feature may be computed from another one inside the backbone. Here each begins a graph of its own.
        return {k: taps.begin(k, v) if feature in (None, k) else v for k, v in output.items()}

    handles = [
        model.backbone.register_forward_pre_hook(see_input),
        module.register_forward_hook(tap),
        model.backbone.register_forward_hook(see_output),
    ]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def _find(model: nn.Module, layer: str) -> Tuple[nn.Module, Optional[str]]:
    """Return the module of a layer and, if it is a feature of the backbone, its name.

    Args:
        layer: a feature of the backbone, a module's name, or the end of one.
    """
    features = model.backbone.output_shape()
    if layer in features and layer != SCORES:
        return model.backbone, layer
    modules = {name: module for name, module in model.named_modules() if name}
    ends = [name for name in modules if name == layer or name.endswith(f".{layer}")]
    if layer in modules or len(ends) == 1:
        return modules[layer if layer in modules else ends[0]], None
    if ends:
        raise UserError(f"--layer {layer!r} is the end of {len(ends)} names, such as {ends[0]} and {ends[1]}")
    stages = [name.rpartition(".")[2] for name in modules if name.count(".") < 3]
    known = dict.fromkeys([*(f for f in features if f != SCORES), *stages, *modules])
    raise UserError(f"--layer: there is no {layer!r}; {nearest(layer, known)}")


def _gradient(score: Tensor, maps: Sequence[_Map], layer: Optional[str]) -> Tuple[_Map, Tensor]:
    """Return the map that speaks most for the score, and the score's gradient by it."""
    gradients: Sequence[Optional[Tensor]] = [None] * len(maps)
    if score.requires_grad:
        gradients = torch.autograd.grad(score, [m.value for m in maps], allow_unused=True)
    pairs = [(m, g) for m, g in zip(maps, gradients) if g is not None]
    if not pairs:
        raise UserError(
            f"--layer {layer or 'backbone'} does not change the score; name one that comes before it"
        )
    return max(pairs, key=lambda pair: float((pair[0].value.detach() * pair[1]).abs().sum()))


def _rgb(image: Tensor, image_format: str) -> np.ndarray:
    """Return the (C, H, W) uint8 image of a model's input as (H, W, 3) in RGB."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    if pixels.shape[2] == 1:
        return np.ascontiguousarray(np.repeat(pixels, 3, 2))
    return np.ascontiguousarray(pixels[..., ::-1] if image_format == "BGR" else pixels)
