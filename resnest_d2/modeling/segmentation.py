"""The authors' DeepLabV3 head, as a semantic head of detectron2.

Source: DeepLabV3 (arXiv 1706.05587) as in the authors' segmentation code, PyTorch-Encoding. It differs from
detectron2's head in the norm of the pooled image, the 3x3 convolution before the predictor, the auxiliary
head, dropout, initialisation and interpolation.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.projects.deeplab.loss import DeepLabCE
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from .norms import Norm, get_norm, get_pooled_norm
from .precision import at_least_float32


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, dilated 3x3 convolutions, and the pooled image.

    Args:
        in_channels, channels: of the input, and of each branch and the output.
        dilations: of the 3x3 convolutions.
        norm: after each convolution, including that of the pooled image.
        dropout: probability of dropping a channel of the output.
        project_size: kernel size of the convolution that joins the branches.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        dilations: Sequence[int],
        norm: Norm,
        dropout: float,
        project_size: int = 1,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                _conv(in_channels, channels, 1, norm),
                *(_conv(in_channels, channels, 3, norm, dilation) for dilation in dilations),
                _conv(in_channels, channels, 1, norm, pooled=True),
            ]
        )
        self.project = _conv(channels * len(self.convs), channels, project_size, norm)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H, W)."""
        *convs, image = self.convs
        pooled = image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.dropout(self.project(torch.cat([*(conv(x) for conv in convs), pooled], 1)))


class Predictor(nn.Sequential):
    """A 3x3 convolution, dropout, and a 1x1 convolution to the classes.

    Args:
        in_channels, channels, num_classes: of the input, in between, and of the output. Without ``channels``
            there is no 3x3 convolution.
        dropout: probability of dropping a value.
    """

    def __init__(
        self, in_channels: int, channels: Optional[int], num_classes: int, norm: Norm, dropout: float
    ) -> None:
        super().__init__()
        if channels is not None:
            self.conv = _conv(in_channels, channels, 3, norm)
            in_channels = channels
        self.dropout = nn.Dropout(dropout)
        self.predictor = Conv2d(in_channels, num_classes, 1)


def _conv(
    in_channels: int, channels: int, size: int, norm: Norm, dilation: int = 1, pooled: bool = False
) -> Conv2d:
    """A convolution that keeps the size, with norm and ReLU. As the authors', PyTorch initialises it."""
    return Conv2d(
        in_channels,
        channels,
        size,
        padding=dilation * (size // 2),
        dilation=dilation,
        bias=norm == "",
        norm=get_pooled_norm(norm, channels, 1) if pooled else get_norm(norm, channels),
        activation=F.relu,
    )


@SEM_SEG_HEADS_REGISTRY.register()
class ResNeStDeepLabV3Head(nn.Module):
    """DeepLabV3 with an auxiliary head in training, for :class:`detectron2.modeling.SemanticSegmentor`.

    Args:
        input_shape: shapes of the backbone's features.
        in_feature, aux_feature: names of those for the head and for the auxiliary head.
        num_classes: number of classes.
        channels: of ASPP and of the convolution before the predictor.
        dilations: of ASPP.
        aspp_dropout, dropout: probabilities of dropping a channel after ASPP, and a value before predictors.
        project_size, head_conv: kernel size of ASPP's last convolution, and whether there is another before
            the predictor; 3 and False are mmsegmentation's.
        norm: see :func:`detectron2.layers.get_norm`.
        loss_type: ``cross_entropy``, or ``hard_pixel_mining``, which averages over the fifth of the pixels
            with the largest loss, as detectron2's DeepLab does.
        loss_weight: weight of that loss.
        aux_loss_weight: weight of the auxiliary head's; 0 for no such head.
        ignore_value: label of pixels that do not count.
        align_corners: of the interpolation of scores to the image's size.

    Raises:
        OptionError: the backbone has no such feature, or an option is out of range.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        in_feature: str = "res5",
        aux_feature: str = "res4",
        num_classes: int,
        channels: int = 256,
        dilations: Sequence[int] = (12, 24, 36),
        aspp_dropout: float = 0.5,
        dropout: float = 0.1,
        project_size: int = 1,
        head_conv: bool = True,
        norm: Norm = "BN",
        loss_type: str = "cross_entropy",
        loss_weight: float = 1.0,
        aux_loss_weight: float = 0.5,
        ignore_value: int = 255,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        features = {"in_feature": in_feature, **({"aux_feature": aux_feature} if aux_loss_weight else {})}
        _check_features(features, input_shape, "the backbone's features")
        self.in_feature, self.aux_feature = in_feature, aux_feature
        if loss_type not in ("cross_entropy", "hard_pixel_mining"):
            raise OptionError("loss_type", loss_type, "must be cross_entropy or hard_pixel_mining")
        self.loss_type, self.loss_weight, self.aux_loss_weight = loss_type, loss_weight, aux_loss_weight
        self.ignore_value, self.align_corners = ignore_value, align_corners
        self.stride = input_shape[in_feature].stride
        inputs = input_shape[in_feature].channels
        self.aspp = ASPP(inputs, channels, dilations, norm, aspp_dropout, project_size)
        self.head = Predictor(channels, channels if head_conv else None, num_classes, norm, dropout)
        self.aux_head: Optional[Predictor] = None
        if aux_loss_weight:
            inputs = input_shape[aux_feature].channels
            self.aux_head = Predictor(inputs, max(1, inputs // 4), num_classes, norm, dropout)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> Dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        if head.USE_DEPTHWISE_SEPARABLE_CONV:
            rule = "must be False with ResNeStDeepLabV3Head"
            raise OptionError("MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV", True, rule)
        if len(head.IN_FEATURES) != 1:
            raise OptionError("MODEL.SEM_SEG_HEAD.IN_FEATURES", head.IN_FEATURES, "must name one feature")
        features = {"MODEL.SEM_SEG_HEAD.IN_FEATURES": head.IN_FEATURES[0]}
        if head.AUX_LOSS_WEIGHT:
            features["MODEL.SEM_SEG_HEAD.AUX_FEATURE"] = head.AUX_FEATURE
        _check_features(features, input_shape, "MODEL.RESNETS.OUT_FEATURES")
        try:
            get_norm(head.NORM, head.ASPP_CHANNELS)
        except OptionError as e:
            raise e.renamed({"norm": "MODEL.SEM_SEG_HEAD.NORM"}) from None
        return {
            "input_shape": input_shape,
            "in_feature": head.IN_FEATURES[0],
            "aux_feature": head.AUX_FEATURE,
            "num_classes": head.NUM_CLASSES,
            "channels": head.ASPP_CHANNELS,
            "dilations": head.ASPP_DILATIONS,
            "aspp_dropout": head.ASPP_DROPOUT,
            "dropout": head.DROPOUT,
            "project_size": head.PROJECT_SIZE,
            "head_conv": head.HEAD_CONV,
            "norm": head.NORM,
            "loss_type": head.LOSS_TYPE,
            "loss_weight": head.LOSS_WEIGHT,
            "aux_loss_weight": head.AUX_LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
            "align_corners": head.ALIGN_CORNERS,
        }

    def forward(
        self, features: Mapping[str, Tensor], targets: Optional[Tensor] = None
    ) -> Tuple[Optional[Tensor], Dict[str, Tensor]]:
        """Predict from the backbone's features.

        Args:
            targets: (N, H, W) labels, in training.

        Returns:
            In training, None and the losses. Otherwise (N, num_classes, stride * h, stride * w) scores for
            features of (N, C, h, w), and no losses.
        """
        scores = self.head(self.aspp(features[self.in_feature]))
        if not self.training:
            return self._resize(scores, [self.stride * side for side in scores.shape[2:]]), {}
        losses = {"loss_sem_seg": self.loss_weight * self._loss(scores, targets)}
        if self.aux_head is not None:
            scores = self.aux_head(features[self.aux_feature])
            losses["loss_sem_seg_aux"] = self.aux_loss_weight * self._loss(scores, targets)
        return None, losses

    def _resize(self, scores: Tensor, size: List[int]) -> Tensor:
        return F.interpolate(
            at_least_float32(scores), size, mode="bilinear", align_corners=self.align_corners
        )

    def _loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy, averaged over the pixels that count; 0 if there are none, not NaN."""
        scores = self._resize(scores, list(targets.shape[-2:]))
        if self.loss_type == "hard_pixel_mining":
            return DeepLabCE(self.ignore_value, top_k_percent_pixels=0.2)(scores, targets)
        total = F.cross_entropy(scores, targets, ignore_index=self.ignore_value, reduction="sum")
        return total / (targets != self.ignore_value).sum().clamp(min=1)


def _check_features(features: Mapping[str, str], known: Mapping[str, ShapeSpec], what: str) -> None:
    """Raise OptionError for a feature, by the option that names it, that is not one of ``what``."""
    for option, feature in features.items():
        if feature not in known:
            raise OptionError(option, feature, f"must be one of {what} ({', '.join(known)})")
