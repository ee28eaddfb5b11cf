"""Models as functions from one image tensor to tensors, made of their submodules.

detectron2's ``forward`` takes lists of dictionaries and branches on values, which cannot be recorded. These
modules call the same layers with the same numbers, for one image of any size.
"""

from __future__ import annotations

import copy
from typing import Dict, List, Sequence, Tuple, Type

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, RetinaNet, SemanticSegmentor
from detectron2.modeling.roi_heads import CascadeROIHeads
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import CLASSIFIER, SEGMENTOR
from ..errors import OptionError
from ..modeling.classification import SCORES
from ..modeling.inference import optimize_for_inference
from .boxes import DUMMIES, clip, finite, nonempty, pool, suppress, top, with_dummies

#: Name of a graph's input, (1, C, H, W) float32 from 0 to 255, channels in the order of INPUT.FORMAT.
INPUT = "image"


class Graph(nn.Module):
    """Part of a model as a function of one image.

    Args:
        model: has ``backbone``, ``pixel_mean`` and ``pixel_std``.

    Attributes:
        names: of the outputs.
    """

    names: Tuple[str, ...]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.register_buffer("pixel_mean", model.pixel_mean.clone(), False)
        self.register_buffer("pixel_std", model.pixel_std.clone(), False)

    def features(self, image: Tensor) -> Dict[str, Tensor]:
        """The backbone's features of an image, which is normalised and padded as in detectron2."""
        x = (image - self.pixel_mean) / self.pixel_std
        return self.backbone(_padded(x, self.backbone.size_divisibility or 1))


class BackboneGraph(Graph):
    """All features of the backbone, by name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.names = tuple(self.backbone.output_shape())

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        features = self.features(image)
        return tuple(features[name] for name in self.names)


class ClassifierGraph(Graph):
    """Probabilities of the classes, (1, classes)."""

    names = ("probabilities",)

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        return (self.features(image)[SCORES].softmax(1),)


class SegmentorGraph(Graph):
    """Scores of the classes for each pixel of the input, (1, classes, H, W)."""

    names = ("scores",)

    def __init__(self, model: SemanticSegmentor) -> None:
        super().__init__(model)
        self.head = model.sem_seg_head

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        scores, _ = self.head(self.features(image))
        (height, width), (rows, columns) = image.shape[-2:], scores.shape[-2:]
        # Slices would be recorded for sizes only at which something is cut off.
        return (F.pad(scores, (0, width - columns, 0, height - rows)),)


class RetinaNetGraph(Graph):
    """Objects by a one-stage detector; see :class:`RCNNGraph` for its outputs."""

    names = ("boxes", "scores", "classes")

    def __init__(self, model: RetinaNet) -> None:
        super().__init__(model)
        self.head, self.anchors = model.head, model.anchor_generator
        self.transform, self.in_features = model.box2box_transform, model.head_in_features
        self.num_classes, self.candidates = model.num_classes, model.test_topk_candidates
        self.threshold, self.nms = model.test_score_thresh, model.test_nms_thresh
        self.limit = model.max_detections_per_image

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        features = self.features(image)
        maps = [features[name] for name in self.in_features]
        found = []
        for anchors, logits, deltas in zip(self.anchors(maps), *self.head(maps)):
            scores = _rows(logits, self.num_classes).sigmoid().flatten()
            best, index = top(scores, self.candidates)
            row = index // self.num_classes
            boxes = self.transform.apply_deltas(_rows(deltas, 4)[row], anchors.tensor[row])
            found.append((boxes, best, index % self.num_classes))
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*found))
        keep = ((scores > self.threshold) & finite(scores) & finite(boxes).all(1)).nonzero()[:, 0]
        boxes = with_dummies(boxes[keep])
        scores, classes = (F.pad(values[keep], (DUMMIES, 0)) for values in (scores, classes))
        keep = suppress(boxes, scores, classes, self.num_classes, self.nms, self.limit)[DUMMIES:]
        boxes = clip(boxes[keep], image.shape[-2:])  # after suppression, as in detectron2
        seen = nonempty(boxes).nonzero()[:, 0]
        return boxes[seen], scores[keep][seen], classes[keep][seen]


class RCNNGraph(Graph):
    """Objects by a two-stage detector, Faster, Mask or Cascade R-CNN.

    The outputs are ``boxes`` (n, 4) in pixels of the input, x0, y0, x1, y1; ``scores`` (n,), descending;
    ``classes`` (n,) int64; with masks ``masks`` (n, M, M), probabilities over each box.
    """

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__(model)
        self.rpn, self.heads = model.proposal_generator, model.roi_heads
        self.names = ("boxes", "scores", "classes", *(["masks"] if self.heads.mask_on else []))
        stages = isinstance(self.heads, CascadeROIHeads)
        self.box_heads = self.heads.box_head if stages else [self.heads.box_head]
        self.predictors = self.heads.box_predictor if stages else [self.heads.box_predictor]

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        size = image.shape[-2:]
        features = self.features(image)
        boxes, scores = self._classify(features, self._propose(features, size), size)
        last = self.predictors[-1]
        # Of the dummies each counts as an object of the first class, the other rows by their scores.
        num_classes = scores.shape[1]
        dummies = torch.arange(num_classes, device=scores.device).expand(DUMMIES, -1) == 0
        good = (scores > last.test_score_thresh) & finite(boxes).flatten(1).all(1, keepdim=True)
        row, label = torch.cat([dummies, good[DUMMIES:]]).nonzero().unbind(1)
        boxes = boxes[row, label if boxes.shape[1] > 1 else label * 0]
        boxes, scores = with_dummies(clip(boxes, size)[DUMMIES:]), scores[row, label]
        keep = suppress(boxes, scores, label, num_classes, last.test_nms_thresh, last.test_topk_per_image)
        keep = keep[nonempty(boxes[keep]).nonzero()[:, 0]]
        boxes, scores, label = boxes[keep], scores[keep], label[keep]
        masks = [self._masks(features, boxes, label)] if self.heads.mask_on else []
        return tuple(values[DUMMIES:] for values in (boxes, scores, label, *masks))

    def _propose(self, features: Dict[str, Tensor], size: Sequence[int]) -> Tensor:
        """Proposals, (n, 4), the dummies first."""
        rpn = self.rpn
        maps = [features[name] for name in rpn.in_features]
        found = []
        for anchors, logits, deltas in zip(rpn.anchor_generator(maps), *rpn.rpn_head(maps)):
            best, index = top(_rows(logits, 1)[:, 0], rpn.pre_nms_topk[False])
            found.append(
                (rpn.box2box_transform.apply_deltas(_rows(deltas, 4)[index], anchors.tensor[index]), best)
            )
        boxes, scores = (torch.cat(parts) for parts in zip(*found))
        level = torch.arange(len(maps), device=boxes.device).repeat_interleave(rpn.pre_nms_topk[False])
        # Scores are logits, but some runtimes suppress what is not above 0: ranks stand in for them.
        scores, order = scores.topk(scores.shape[0])
        boxes, level = boxes[order], level[order]
        rank = torch.arange(scores.shape[0], 0, -1, dtype=boxes.dtype, device=boxes.device)
        good = finite(scores) & finite(boxes).all(1)
        boxes = clip(boxes, size)
        keep = (good & nonempty(boxes, rpn.min_box_size)).nonzero()[:, 0]
        boxes = with_dummies(boxes[keep])
        rank, level = (F.pad(values[keep], (DUMMIES, 0)) for values in (rank, level))
        limit = rpn.post_nms_topk[False]
        return boxes[suppress(boxes, rank, level, len(maps), rpn.nms_thresh, limit)]

    def _classify(
        self, features: Dict[str, Tensor], boxes: Tensor, size: Sequence[int]
    ) -> Tuple[Tensor, Tensor]:
        """Boxes (n, classes or 1, 4) and scores (n, classes) of proposals, through all stages."""
        maps = [features[name] for name in self.heads.box_in_features]
        total: List[Tensor] = []
        for i, (head, predictor) in enumerate(zip(self.box_heads, self.predictors)):
            if i:
                boxes = clip(boxes, size)
            logits, deltas = predictor(head(pool(self.heads.box_pooler, maps, boxes)))
            boxes = predictor.box2box_transform.apply_deltas(deltas, boxes)
            total.append(logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(1))
        scores = sum(total) / len(total) if len(total) > 1 else total[0]
        return boxes.unflatten(1, (-1, 4)), scores[:, :-1]

    def _masks(self, features: Dict[str, Tensor], boxes: Tensor, label: Tensor) -> Tensor:
        heads = self.heads
        maps = [features[name] for name in heads.mask_in_features]
        logits = heads.mask_head.layers(pool(heads.mask_pooler, maps, boxes))
        if logits.shape[1] == 1:
            return logits[:, 0].sigmoid()
        return logits[torch.arange(label.shape[0], device=label.device), label].sigmoid()


#: The graph of each kind of model that can be exported, by MODEL.META_ARCHITECTURE.
_GRAPHS: Dict[str, Type[Graph]] = {
    "GeneralizedRCNN": RCNNGraph,
    "RetinaNet": RetinaNetGraph,
    SEGMENTOR: SegmentorGraph,
    CLASSIFIER: ClassifierGraph,
}
_HEADS = ("StandardROIHeads", "CascadeROIHeads")


def build_graph(model: nn.Module, cfg: CfgNode, backbone: bool = False) -> Graph:
    """Return a model, or its backbone, as a function of one image, on the CPU and with norms folded.

    Args:
        model: of ``cfg``; it is copied.

    Raises:
        OptionError: this kind of model cannot be exported.
    """
    check_exportable(cfg, backbone)
    model = optimize_for_inference(copy.deepcopy(model).cpu())
    kind = BackboneGraph if backbone else _GRAPHS[cfg.MODEL.META_ARCHITECTURE]
    return kind(model).eval()


def check_exportable(cfg: CfgNode, backbone: bool = False) -> None:
    """Raise OptionError for a kind of model that cannot be exported; of all, the backbone can."""
    if backbone:
        return
    rule, model = "; only the backbone of such a model can be exported", cfg.MODEL
    if model.META_ARCHITECTURE not in _GRAPHS:
        kinds = ", ".join(_GRAPHS)
        raise OptionError("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, f"must be one of {kinds}{rule}")
    if model.META_ARCHITECTURE != "GeneralizedRCNN":
        return
    if model.KEYPOINT_ON:
        raise OptionError("MODEL.KEYPOINT_ON", True, f"must be False{rule}")
    for option, value, known in (
        ("MODEL.ROI_HEADS.NAME", model.ROI_HEADS.NAME, _HEADS),
        ("MODEL.PROPOSAL_GENERATOR.NAME", model.PROPOSAL_GENERATOR.NAME, ("RPN",)),
        ("MODEL.ANCHOR_GENERATOR.NAME", model.ANCHOR_GENERATOR.NAME, ("DefaultAnchorGenerator",)),
    ):
        if value not in known:
            raise OptionError(option, value, f"must be {' or '.join(known)}{rule}")
    if model.MASK_ON and model.ROI_MASK_HEAD.NAME != "MaskRCNNConvUpsampleHead":
        name = model.ROI_MASK_HEAD.NAME
        raise OptionError("MODEL.ROI_MASK_HEAD.NAME", name, f"must be MaskRCNNConvUpsampleHead{rule}")


def _padded(x: Tensor, divisor: int) -> Tensor:
    """Append zeros until height and width are multiples of ``divisor``."""
    if divisor == 1:
        return x
    height, width = x.shape[-2:]
    rows, columns = (height + divisor - 1) // divisor, (width + divisor - 1) // divisor
    if torch.compiler.is_exporting() and not isinstance(rows, int):
        # Sizes of their own: of quotients, torch.export cannot tell that strides divide their multiples.
        rows, columns = torch.tensor(rows).item(), torch.tensor(columns).item()
        for count in (rows, columns):
            torch._check(count >= 1)
            torch._check(count <= 4096)
    return F.pad(x, (0, divisor * columns - width, 0, divisor * rows - height))


def _rows(maps: Tensor, channels: int) -> Tensor:
    """Reorder (1, A * channels, H, W) to (H * W * A, channels)."""
    return maps[0].unflatten(0, (-1, channels)).permute(2, 3, 0, 1).flatten(0, 2)
