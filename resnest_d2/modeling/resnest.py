"""The ResNeSt backbone, independent of any cfg."""

from __future__ import annotations

import re
from functools import partial
from typing import Callable, List, Optional, Sequence, Tuple

from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from torch import nn

from ..errors import OptionError
from .blocks import DeepStem, ResNeStBottleneck, bottleneck_conv2
from .checkpointing import KEEPS
from .norms import Norm
from .split_attention import SplitAttentionConv2d

#: Residual blocks per stage, by depth, from table 2 of arXiv 1512.03385, the authors' model definitions
#: (200, 269) and the Gluon model zoo (14, 26).
STAGE_BLOCKS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}

#: Width of the deep stem's first convolution, by depth (the authors' model definitions).
STEM_WIDTH = {14: 32, 26: 32, 50: 32, 101: 64, 152: 64, 200: 64, 269: 64}

#: Dilations of (res4, res5) that make a consistent sampling grid.
DILATIONS = ((1, 1), (1, 2), (2, 4))

STAGES = ("res2", "res3", "res4", "res5")

_VARIANT = re.compile(
    r"resnest(?P<depth>\d+)(?P<fast>_fast)?(_(?P<radix>\d+)s(?P<cardinality>\d+)x(?P<width>\d+)d)?"
)


class ResNeSt(ResNet):
    """ResNet with Split-Attention blocks (arXiv 2004.08955).

    detectron2's ResNet supplies the forward pass over stem and stages, freezing, and the backbone
    protocol; this class chooses the blocks. Outputs are dicts from feature name (``stem``, ``res2`` ..
    ``res5``, ``linear``) to tensors; ``res<i>`` has stride 2**i unless dilated.

    Args:
        depth: a key of :data:`STAGE_BLOCKS`.
        in_channels: channels of the image.
        deep_stem: use three 3x3 convolutions instead of one 7x7.
        stem_width: width of the deep stem's first two convolutions; None takes :data:`STEM_WIDTH`.
        stem_out_channels: output channels of the plain stem; a deep stem has twice ``stem_width``.
        radix: splits per cardinal group; 0 for a plain convolution.
        cardinality: number of cardinal groups.
        bottleneck_width: width of one cardinal group in a stage with 64 planes.
        width_per_group: planes of res2, doubled at each further stage.
        res2_out_channels: output channels of res2, doubled at each further stage.
        avd: downsample with a 3x3 average pool in the first block of res3 to res5.
        avd_dilated: keep that pool in dilated stages, at stride 1, as in the authors' classification and
            segmentation networks. mmsegmentation and the released plugin drop it there.
        avd_first: put that pool before the 3x3 convolution, as in the fast variants.
        avg_down: downsample the shortcut with an average pool.
        stride_in_1x1: without ``avd``, put the stride in the first 1x1 convolution instead of the 3x3.
        res4_dilation, res5_dilation: dilations, one of the pairs in :data:`DILATIONS`.
        contract_dilation: halve the dilation in the first block of a dilated stage, as in the authors'
            classification and segmentation networks and in mmsegmentation. detectron2 and the released
            plugin use the same dilation in all blocks of a stage.
        deform_on_per_stage: which of res2 to res5 have deformable 3x3 convolutions.
        deform_modulated: use deformable convolution v2 instead of v1.
        deform_num_groups: number of channel groups that each share one set of offsets.
        fused_kernels: see :class:`SplitAttentionConv2d`.
        checkpoint_stages: which of ``res2`` to ``res5`` use activation checkpointing in training: less
            memory for more time.
        checkpoint_keeps: what these stages keep: the ``inputs`` of their blocks, or also the outputs of
            ``convolutions``, which takes more memory but costs hardly any time.
        norm: see :func:`detectron2.layers.get_norm`.
        freeze_at: 0 freezes nothing, 1 the stem, 2 also res2, ... 5 everything.
        out_features: names of the outputs; None for the last layer only. Stages after the last one named
            are not built.
        num_classes: number of classes of an optional linear layer on the pooled res5, called ``linear``.

    Raises:
        OptionError: an option or a combination of two options cannot work.
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        in_channels: int = 3,
        deep_stem: bool = True,
        stem_width: Optional[int] = None,
        stem_out_channels: int = 64,
        radix: int = 2,
        cardinality: int = 1,
        bottleneck_width: int = 64,
        width_per_group: int = 64,
        res2_out_channels: int = 256,
        avd: bool = True,
        avd_dilated: bool = True,
        avd_first: bool = False,
        avg_down: bool = True,
        stride_in_1x1: bool = False,
        res4_dilation: int = 1,
        res5_dilation: int = 1,
        contract_dilation: bool = False,
        deform_on_per_stage: Sequence[bool] = (False, False, False, False),
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        fused_kernels: bool = True,
        checkpoint_stages: Sequence[str] = (),
        checkpoint_keeps: str = "inputs",
        norm: Norm = "BN",
        freeze_at: int = 0,
        out_features: Optional[Sequence[str]] = None,
        num_classes: Optional[int] = None,
    ) -> None:
        if out_features is None:
            out_features = ["res5" if num_classes is None else "linear"]
        _check_flags(
            deep_stem=deep_stem,
            avd=avd,
            avd_dilated=avd_dilated,
            avd_first=avd_first,
            avg_down=avg_down,
            stride_in_1x1=stride_in_1x1,
            contract_dilation=contract_dilation,
            deform_modulated=deform_modulated,
            fused_kernels=fused_kernels,
        )
        _check_lists(
            deform_on_per_stage=deform_on_per_stage,
            checkpoint_stages=checkpoint_stages,
            out_features=out_features,
        )
        _check_at_least(0, radix=radix)
        _check_at_least(
            1,
            in_channels=in_channels,
            stem_out_channels=stem_out_channels,
            cardinality=cardinality,
            width_per_group=width_per_group,
            res2_out_channels=res2_out_channels,
            deform_num_groups=deform_num_groups,
            **({} if stem_width is None else {"stem_width": stem_width}),
            **({} if num_classes is None else {"num_classes": num_classes}),
        )
        if depth not in STAGE_BLOCKS:
            raise OptionError("depth", depth, f"must be one of {', '.join(map(str, STAGE_BLOCKS))}")
        if avd_first and not avd:
            raise OptionError("avd_first", avd_first, "needs `avd`: set it to True, or this to False")
        if (res4_dilation, res5_dilation) not in DILATIONS:
            raise OptionError(
                "res5_dilation",
                res5_dilation,
                f"must make one of {', '.join(map(str, DILATIONS))} "
                f"with `res4_dilation` {res4_dilation} before it",
            )
        if len(deform_on_per_stage) != len(STAGES):
            raise OptionError(
                "deform_on_per_stage", deform_on_per_stage, "must have one entry for each of res2..res5"
            )
        if not set(checkpoint_stages) <= set(STAGES):
            raise OptionError("checkpoint_stages", checkpoint_stages, f"must be some of {', '.join(STAGES)}")
        if checkpoint_keeps not in KEEPS:
            raise OptionError("checkpoint_keeps", checkpoint_keeps, f"must be one of {', '.join(KEEPS)}")
        if checkpoint_stages and checkpoint_keeps == "convolutions" and norm == "":
            # The activation would overwrite their outputs in place, so keeping them would save nothing.
            raise OptionError("checkpoint_keeps", checkpoint_keeps, "needs a norm; use inputs")
        if freeze_at not in range(6):
            raise OptionError("freeze_at", freeze_at, "must be 0 (nothing) to 5 (all stages)")
        num_stages = _num_stages(out_features, num_classes)

        if deep_stem:
            stem = DeepStem(in_channels, STEM_WIDTH[depth] if stem_width is None else stem_width, norm)
        else:
            stem = BasicStem(in_channels, stem_out_channels, norm)
        block = partial(ResNeStBottleneck, pool_first=avd_first, avg_down=avg_down, norm=norm)
        channels, stages = stem.out_channels, []
        for i in range(num_stages):
            planes, dilation = width_per_group * 2**i, (1, 1, res4_dilation, res5_dilation)[i]
            deform_groups = deform_num_groups if deform_on_per_stage[i] else 0
            stages.append(
                make_stage(
                    STAGE_BLOCKS[depth][i],
                    in_channels=channels,
                    out_channels=res2_out_channels * 2**i,
                    width=_width(planes, bottleneck_width, cardinality, radix, deform_groups),
                    stride=1 if i == 0 or dilation > 1 else 2,
                    dilation=dilation,
                    first_dilation=max(1, dilation // 2) if contract_dilation else dilation,
                    avd=avd and i > 0 and (avd_dilated or dilation == 1),
                    stride_in_1x1=stride_in_1x1,
                    conv2=partial(
                        bottleneck_conv2,
                        cardinality=cardinality,
                        radix=radix,
                        deform_groups=deform_groups,
                        deform_modulated=deform_modulated,
                        norm=norm,
                    ),
                    block=block,
                )
            )
            channels = stages[-1][-1].out_channels
            for module in stages[-1]:
                module.checkpoint = checkpoint_keeps if STAGES[i] in checkpoint_stages else None
        # ResNet drops the stages after the last of out_features, which would put `linear` on an earlier one
        # than res5. They are dropped above, so ResNet gets the last stage, and the outputs are set below.
        super().__init__(
            stem,
            stages,
            num_classes,
            out_features=[STAGES[num_stages - 1] if num_stages else "stem"],
            freeze_at=freeze_at,
        )
        self._out_features = list(out_features)
        self._out_feature_channels["linear"] = num_classes
        self._out_feature_strides["linear"] = None
        for module in self.modules():
            if isinstance(module, SplitAttentionConv2d):
                module.fused_kernels = fused_kernels

    @classmethod
    def from_variant(cls, name: str, **options) -> ResNeSt:
        """Build the backbone with a published name.

        Args:
            name: ``resnest<depth>`` or ``resnest<depth>_fast``, optionally followed by
                ``_<radix>s<cardinality>x<bottleneck width>d``: ``resnest101``,
                ``resnest50_fast_4s2x40d``.
            options: further arguments of the constructor, which override those that the name implies.

        Raises:
            OptionError: the name has another form or depth.
        """
        match = _VARIANT.fullmatch(name)
        if match is None or int(match["depth"]) not in STAGE_BLOCKS:
            raise OptionError(
                "variant",
                name,
                "must be resnest<depth>[_fast][_<radix>s<cardinality>x<width>d] with depth one of "
                + ", ".join(map(str, STAGE_BLOCKS)),
            )
        named = {"depth": int(match["depth"])}
        if match["fast"] is not None:
            # Table 3 of the paper: ResNeSt-101-fast has 48.2 M parameters, so it too has the narrow stem.
            named.update(avd_first=True, stem_width=32)
        if match["radix"] is not None:
            named.update(
                radix=int(match["radix"]),
                cardinality=int(match["cardinality"]),
                bottleneck_width=int(match["width"]),
            )
        return cls(**{**named, **options})


def make_stage(
    num_blocks: int,
    *,
    in_channels: int,
    out_channels: int,
    width: int,
    stride: int,
    dilation: int,
    first_dilation: int,
    avd: bool,
    stride_in_1x1: bool,
    conv2: Callable[..., Tuple[nn.Module, Optional[nn.Module]]],
    block: Callable[..., ResNeStBottleneck],
) -> List[ResNeStBottleneck]:
    """Make the blocks of one stage. Only the first changes channels and resolution.

    Args:
        width: channels between the convolutions of a block.
        stride: stride of the stage; with ``avd`` the first block's average pool carries it.
        first_dilation: dilation of the first block; ``dilation`` is that of the others.
        avd: give the first block that pool, even at stride 1.
        stride_in_1x1: see :class:`ResNeSt`.
        conv2: :func:`bottleneck_conv2`, which still takes width, stride and dilation.
        block: :class:`ResNeStBottleneck`, which still takes channels, width, strides and 3x3 convolution.
    """
    blocks = []
    for i in range(num_blocks):
        first = i == 0
        block_stride, pooled = stride if first else 1, avd and first
        conv_stride = 1 if pooled else block_stride
        conv, offset = conv2(
            width, stride=1 if stride_in_1x1 else conv_stride, dilation=first_dilation if first else dilation
        )
        blocks.append(
            block(
                in_channels if first else out_channels,
                out_channels,
                conv2=conv,
                conv2_offset=offset,
                width=width,
                stride=block_stride,
                conv1_stride=conv_stride if stride_in_1x1 else 1,
                pool_stride=block_stride if pooled else None,
            )
        )
    return blocks


def _width(planes: int, bottleneck_width: int, cardinality: int, radix: int, deform_groups: int) -> int:
    """Channels of a stage's 3x3 convolutions; ``planes`` are 64 in res2 and 512 in res5."""
    of_group = int(planes * bottleneck_width / 64)
    if of_group < 1:
        raise OptionError("bottleneck_width", bottleneck_width, f"must be >= {-(-64 // planes)}")
    if radix and of_group % radix:
        raise OptionError("radix", radix, f"must divide {of_group} channels of a cardinal group")
    if deform_groups and of_group * cardinality % deform_groups:
        raise OptionError(
            "deform_num_groups", deform_groups, f"must divide {of_group * cardinality} channels"
        )
    return of_group * cardinality


def _check_flags(**options: bool) -> None:
    for option, value in options.items():
        if not isinstance(value, bool):
            raise OptionError(option, value, "must be True or False")


def _check_lists(**options: Sequence) -> None:
    for option, value in options.items():
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise OptionError(option, value, "must be a list")


def _check_at_least(least: int, **options: int) -> None:
    for option, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise OptionError(option, value, f"must be a whole number >= {least}")


def _num_stages(out_features: Sequence[str], num_classes: Optional[int]) -> int:
    """Return how many stages the outputs need. Raises OptionError if the names are unknown or missing."""
    known = ("stem", *STAGES) + (() if num_classes is None else ("linear",))
    if not out_features or not set(out_features) <= set(known):
        raise OptionError("out_features", out_features, f"must be some of {', '.join(known)}")
    if num_classes is not None:
        if "linear" not in out_features:  # its parameters would never get a gradient
            raise OptionError("out_features", out_features, "must hold linear with `num_classes`")
        return len(STAGES)
    return max(("stem", *STAGES).index(name) for name in out_features)
