"""Image classification: the meta-architecture, and what the authors' recipe adds to it in training."""

from __future__ import annotations

from functools import partial
from typing import Any, Dict, List, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from .precision import at_least_float32
from .resnest import STAGES

#: The feature that holds a backbone's scores of classes.
SCORES = "linear"


@META_ARCH_REGISTRY.register()
class ImageClassifier(nn.Module):
    """A backbone that ends in a linear layer, and its loss.

    Args:
        backbone: has the feature ``linear`` of (N, num_classes), as :class:`ResNeSt` with ``num_classes``.
        pixel_mean, pixel_std: per channel.
        label_smoothing: probability that is spread evenly over all classes.
        mixup_alpha: of the Beta distribution from which the weight of a batch is drawn, against the same
            batch in reverse order (arXiv 1710.09412); 0 for none.
        dropout: probability of dropping a value before the linear layer.
        zero_init_last_norm: start with residual branches of 0, by the last norm of each block.
        drop_block: probability of dropping a value by DropBlock at the end of training.
        drop_block_size: height and width in pixels of what it drops together.
        drop_block_stages: stages in which it is used.
        max_iter: iterations until then; the probability grows linearly.

    Raises:
        OptionError: an option is out of range or does not fit the backbone.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        dropout: float = 0.0,
        zero_init_last_norm: bool = False,
        drop_block: float = 0.0,
        drop_block_size: int = 3,
        drop_block_stages: Sequence[str] = ("res4", "res5"),
        max_iter: int = 1,
    ) -> None:
        super().__init__()
        if SCORES not in backbone.output_shape():
            raise OptionError("backbone", type(backbone).__name__, f"must have the feature {SCORES}")
        for option, value in (("label_smoothing", label_smoothing), ("dropout", dropout)):
            if not 0 <= value < 1:
                raise OptionError(option, value, "must be from 0 to below 1")
        if not mixup_alpha >= 0:
            raise OptionError("mixup_alpha", mixup_alpha, "must be >= 0")
        self.backbone = backbone
        self.label_smoothing, self.mixup_alpha = label_smoothing, mixup_alpha
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        if dropout:
            add_dropout(backbone.linear, dropout)
        if zero_init_last_norm:
            zero_last_norms(backbone)
        if drop_block:
            add_drop_block(backbone, drop_block, drop_block_size, drop_block_stages, max_iter)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        classifier, resnets = cfg.MODEL.CLASSIFIER, cfg.MODEL.RESNETS
        if [*resnets.OUT_FEATURES] != [SCORES]:
            raise OptionError(
                "MODEL.RESNETS.OUT_FEATURES", resnets.OUT_FEATURES, f"must be [{SCORES}] for ImageClassifier"
            )
        return {
            "backbone": build_backbone(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "label_smoothing": classifier.LABEL_SMOOTHING,
            "mixup_alpha": classifier.MIXUP_ALPHA,
            "dropout": classifier.DROPOUT,
            "zero_init_last_norm": classifier.ZERO_INIT_LAST_NORM,
            "drop_block": classifier.DROP_BLOCK.PROB,
            "drop_block_size": classifier.DROP_BLOCK.SIZE,
            "drop_block_stages": classifier.DROP_BLOCK.STAGES,
            "max_iter": cfg.SOLVER.MAX_ITER,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: List[Dict[str, Any]]) -> Any:
        """Compute the loss in training, and otherwise the probabilities of the classes.

        Args:
            batched_inputs: each with ``image``, (C, H, W), all of one size, and in training ``label``.

        Returns:
            In training ``{"loss_cls": loss}``, else for each image ``{"probabilities": (num_classes,)}``.
        """
        images = torch.stack([record["image"] for record in batched_inputs]).to(self.device)
        images = (images - self.pixel_mean) / self.pixel_std
        if not self.training:
            scores = at_least_float32(self.backbone(images)[SCORES])
            return [{"probabilities": row} for row in scores.softmax(1)]
        labels = torch.tensor([record["label"] for record in batched_inputs], device=self.device)
        return {"loss_cls": self._loss(images, labels)}

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        weight = 1.0
        if self.mixup_alpha:
            weight = float(torch.distributions.Beta(self.mixup_alpha, self.mixup_alpha).sample())
            images = weight * images + (1 - weight) * images.flip(0)
        scores = at_least_float32(self.backbone(images)[SCORES])
        _log_accuracy(scores, labels)
        smoothing = self.label_smoothing
        loss = F.cross_entropy(scores, labels, label_smoothing=smoothing)
        if weight == 1:
            return loss
        return weight * loss + (1 - weight) * F.cross_entropy(
            scores, labels.flip(0), label_smoothing=smoothing
        )


def _log_accuracy(scores: Tensor, labels: Tensor) -> None:
    """Log the part of a batch that is right; with mixup, by the labels of the batch that is not reversed."""
    right = (scores.detach().argmax(1) == labels).float().mean()
    get_event_storage().put_scalar("classifier/top1", 100 * float(right))


def zero_last_norms(backbone: Backbone) -> None:
    """Let each block start as its shortcut, by a factor of 0 in its last norm."""
    for stage in STAGES:
        for block in getattr(backbone, stage):
            weight = getattr(block.conv3.norm, "weight", None)
            if weight is None:
                rule = "must be False without a trained norm (MODEL.RESNETS.NORM)"
                raise OptionError("zero_init_last_norm", True, rule)
            nn.init.zeros_(weight)


def add_dropout(layer: nn.Module, probability: float) -> None:
    """Drop inputs of a layer in training, without another module, which would change names of weights."""
    layer.register_forward_pre_hook(partial(_drop_input, probability))


def _drop_input(probability: float, module: nn.Module, args: Tuple[Tensor, ...]) -> Tensor:
    return F.dropout(args[0], probability, module.training)


def add_drop_block(
    backbone: Backbone, probability: float, size: int, stages: Sequence[str], max_iter: int
) -> None:
    """Use DropBlock after the convolutions of each block, by hooks, as in the authors' training code.

    It comes after the norms of the 1x1 convolutions and after Split-Attention. The authors raise the
    probability from epoch to epoch, this from iteration to iteration.

    Args:
        probability: at the last iteration.
        max_iter: number of iterations.

    Raises:
        OptionError: a number is out of range, a stage does not exist or recomputes its activations, which
            would draw other pixels.
    """
    if not 0 <= probability < 1:
        raise OptionError("drop_block", probability, "must be from 0 to below 1")
    if size < 1:
        raise OptionError("drop_block_size", size, "must be >= 1")
    if not set(stages) <= set(STAGES):
        raise OptionError("drop_block_stages", stages, f"must be some of {', '.join(STAGES)}")

    drop = partial(_drop_output, probability, size, max_iter)
    for stage in stages:
        for block in getattr(backbone, stage):
            if getattr(block, "checkpoint", None):
                raise OptionError(
                    "drop_block_stages",
                    stages,
                    "must not share a stage with MODEL.RESNETS.CHECKPOINT_STAGES, which compute it twice",
                )
            for module in (block.conv1.norm or block.conv1, block.conv2, block.conv3.norm or block.conv3):
                module.register_forward_hook(drop)


def _drop_output(
    probability: float, size: int, max_iter: int, module: nn.Module, args: Any, output: Tensor
) -> Tensor:
    if not module.training:
        return output
    return drop_block(output, probability * (get_event_storage().iter + 1) / max_iter, size)


def drop_block(x: Tensor, probability: float, size: int) -> Tensor:
    """Set squares of ``x`` to 0, and scale the rest up for the mean to stay.

    The squares differ from channel to channel, are the same for all images, and may reach beyond the map, as
    in the authors' code, so that a little more is dropped than the probability says.

    Args:
        x: (N, C, H, W).
        probability: of a value to be in a square, if all squares lay in the map and none overlapped.
        size: height and width of a square in pixels; at most those of the map.

    Source: arXiv 1810.12890, and the border from ``resnest/gluon/dropblock.py`` of zhanghang1989/ResNeSt.
    """
    height, width = x.shape[2:]
    size = min(size, height, width)
    places = (height - size + 1) * (width - size + 1)
    seeds = x.new_empty(1, *x.shape[1:], dtype=torch.float32)
    seeds.bernoulli_(min(1.0, probability * height * width / size**2 / places))
    before, after = (size - 1) // 2, size // 2
    kept = 1 - F.max_pool2d(F.pad(seeds, (before, after, before, after)), size, stride=1)
    return x * (kept * (kept.numel() / kept.sum().clamp(min=1))).to(x.dtype)
