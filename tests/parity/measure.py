"""Largest error of each comparison with the released code, timm and the equations.

The tests assert these figures, and report.py prints them.
"""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

import timm
import torch
from detectron2.modeling import SemanticSegmentor
from torch import Tensor, nn

from resnest_d2 import ResNeSt, SplitAttentionConv2d, optimize_for_inference
from resnest_d2.checkpoint import convert
from resnest_d2.modeling import ResNeStDeepLabV3Head, to_channels_last
from resnest_d2.modeling.deform_conv import DeformConv2d

from . import equations
from .worker import randomise

Error = float

#: What the tests demand, by kind of comparison.
TOLERANCE = {
    "equations": 1e-10,
    "features": 1e-5,
    "features, float64": 1e-10,
    "train step": 1e-4,
    "train step, float64": 1e-8,
    "curve": 1e-3,
}


def relative(ours: Tensor, theirs: Tensor) -> Error:
    """Largest difference, relative to the largest value; infinite where the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    scale = theirs.abs().max().item()
    return (ours - theirs).abs().max().item() / scale if scale else ours.abs().max().item()


def outputs_and_gradients(
    function: Callable[..., Tensor], inputs: List[Tensor], parameters: Iterable[nn.Parameter]
) -> List[Tensor]:
    leaves = [*(x for x in inputs if x.requires_grad), *parameters]
    y = function(*inputs)
    weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(5))
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


def compare_function(
    ours: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: List[Tensor],
    parameters: List[nn.Parameter],
) -> Error:
    pairs = zip(
        outputs_and_gradients(ours, inputs, parameters),
        outputs_and_gradients(reference, inputs, parameters),
    )
    # Where a gradient vanishes (that of a bias before a norm), only its size can be compared.
    return max(relative(a, b) if b.abs().max() > 1e-12 else a.abs().max().item() for a, b in pairs)


def split_attention_equations(radix: int, cardinality: int) -> Error:
    """Worst over odd sizes, of the output and of the gradients of input and every parameter."""
    worst = 0.0
    for size in ((5, 7), (1, 1), (9, 4)):
        torch.manual_seed(radix * 10 + cardinality)
        layer = SplitAttentionConv2d(32, 32, groups=cardinality, radix=radix).double()
        randomise(layer)
        x = torch.randn(3, 32, *size, dtype=torch.float64, requires_grad=True)
        worst = max(
            worst,
            compare_function(
                layer, lambda x, layer=layer: equations.split_attention(layer, x), [x], [*layer.parameters()]
            ),
        )
    return worst


def deform_conv_reference(modulated: bool, deform_groups: int) -> Error:
    """Worst over groups, strides, dilations and odd sizes, of the output and of all gradients."""
    worst = 0.0
    for groups, stride, dilation in itertools.product((1, 2, 4), (1, 2), (1, 2)):
        torch.manual_seed(groups)
        layer = DeformConv2d(
            8, 12, stride=stride, padding=dilation, dilation=dilation,
            groups=groups, deform_groups=deform_groups, modulated=modulated,
        ).double()  # fmt: skip
        size = (-(-7 // stride), -(-9 // stride))
        x = torch.randn(2, 8, 7, 9, dtype=torch.float64, requires_grad=True)
        offset = 2 * torch.randn(2, (27 if modulated else 18) * deform_groups, *size, dtype=torch.float64)

        def reference(x, offset, layer=layer, groups=groups):
            return equations.deform_conv(layer, x, offset, groups, deform_groups)

        inputs = [x, offset.requires_grad_()]
        worst = max(worst, compare_function(layer, reference, inputs, [layer.weight]))
    return worst


def classifier(
    theirs: nn.Module, variant: str, size=(75, 101), dtype: torch.dtype = torch.float32, **options: Any
) -> Error:
    """Worst of logits and the features of all stages, weights converted, norms randomised.

    Ours is compared as it is built, in the format that training on a CPU has, and made fast for inference.

    Args:
        options: of ours, beside those that the variant's name says.
    """
    torch.manual_seed(0)
    theirs.eval().to(dtype)
    randomise(theirs)
    features = {}
    for i in range(1, 5):
        hook = lambda _, __, out, name=f"res{i + 1}": features.__setitem__(name, out)  # noqa: E731
        getattr(theirs, f"layer{i}").register_forward_hook(hook)
    names = ("res2", "res3", "res4", "res5", "linear")
    ours = ResNeSt.from_variant(variant, num_classes=1000, out_features=names, **options).eval().to(dtype)
    conversion = convert(theirs.state_dict())
    conversion.check_complete(variant)
    ours.load_state_dict(conversion.state)
    x = torch.randn(2, 3, *size, dtype=dtype)
    with torch.no_grad():
        features["linear"] = theirs(x)
        worst = 0.0
        for faster in (lambda model: model, to_channels_last, optimize_for_inference):
            faster(ours)
            worst = max(worst, *(relative(y, features[name]) for name, y in ours(x).items()))
    return worst


TIMM = {
    "resnest14d": "resnest14",
    "resnest26d": "resnest26",
    "resnest50d": "resnest50",
    "resnest101e": "resnest101",
    "resnest200e": "resnest200",
    "resnest269e": "resnest269",
    "resnest50d_4s2x40d": "resnest50_fast_4s2x40d",
    "resnest50d_1s4x24d": "resnest50_fast_1s4x24d",
}
AUTHORS = (
    "resnest50",
    "resnest101",
    "resnest50_fast_1s1x64d",
    "resnest50_fast_2s1x64d",
    "resnest50_fast_4s1x64d",
    "resnest50_fast_1s2x40d",
    "resnest50_fast_2s2x40d",
    "resnest50_fast_4s2x40d",
    "resnest50_fast_1s4x24d",
)
#: Arguments of the authors' network, as they write them, and of ours beside ``contract_dilation``.
DILATED = {
    "dilated=True": ({"dilated": True}, {"res4_dilation": 2, "res5_dilation": 4}),
    "dilation=2": ({"dilation": 2}, {"res5_dilation": 2}),
}


def timm_classifier(name: str) -> Error:
    return classifier(timm.create_model(name), TIMM[name])


def authors_classifier(name: str) -> Error:
    import resnest.torch

    return classifier(getattr(resnest.torch, name)(), name)


def dilated_classifier(name: str) -> Error:
    import resnest.torch

    theirs, ours = DILATED[name]
    net = resnest.torch.resnest50(**theirs)
    return classifier(net, "resnest50", dtype=torch.float64, contract_dilation=True, **ours)


#: Depths whose DeepLabV3 is compared.
SEGMENTORS = ("50", "101")
_CLASSES = 7


def segmentor(depth: str) -> Error:
    """Worst of DeepLabV3's scores in eval mode, and of its losses and all parameters' gradients in training.

    The backbone is the authors' own, the heads are the equations, with weights by the authors' names. Dropout
    is off, and ours runs channels-last, as on a CPU.
    """
    import resnest.torch

    torch.manual_seed(4)
    backbone = getattr(resnest.torch, f"resnest{depth}")(dilated=True).double()
    backbone.fc = nn.Identity()
    randomise(backbone)
    heads = authors_heads()
    ours = _segmentor(int(depth)).double()
    ours.load_state_dict(_convert_segmentor(backbone, heads))
    to_channels_last(ours)
    images = torch.randn(2, 3, 65, 88, dtype=torch.float64)
    labels = torch.randint(_CLASSES, (2, 65, 88), generator=torch.Generator().manual_seed(6))
    labels[:, :9] = 255
    features = {}
    for i in (3, 4):
        hook = lambda _, __, out, name=f"res{i + 1}": features.__setitem__(name, out)  # noqa: E731
        getattr(backbone, f"layer{i}").register_forward_hook(hook)

    def reference(size: Tuple[int, int], train: bool) -> Tuple[Tensor, Tensor]:
        backbone.train(train)(images)
        return equations.deeplabv3(heads, features["res4"], features["res5"], size, train)

    with torch.no_grad():
        scores, _ = ours.eval().sem_seg_head(ours.backbone(images))
        errors = [relative(scores, reference((72, 88), False)[0])]  # 9 x 11 features of 8 pixels
    _, losses = ours.train().sem_seg_head(ours.backbone(images), labels)
    expected = [equations.cross_entropy(scores, labels, 255) for scores in reference((65, 88), True)]
    expected[1] = expected[1] / 2
    errors += [relative(a, b) for a, b in zip(losses.values(), expected)]
    sum(losses.values()).backward()
    sum(expected).backward()
    gradients = _convert_segmentor(backbone, heads, lambda tensor: tensor.grad)
    largest = max(gradients[key].abs().max().item() for key, _ in ours.named_parameters())
    for key, parameter in ours.named_parameters():
        scale = gradients[key].abs().max().item()
        # Those of a bias before a norm vanish but for rounding, and are compared with the largest of all.
        scale = scale if scale > 1e-9 * largest else largest
        errors.append((parameter.grad - gradients[key]).abs().max().item() / scale)
    return max(errors)


def authors_heads(classes: int = _CLASSES, channels: int = 256) -> Dict[str, Tensor]:
    """Random tensors of DeepLabV3's heads on features of 1024 and 2048 channels, by the authors' names."""
    state: Dict[str, Tensor] = {}

    def layer(conv: str, norm: str, inputs: int, size: int) -> None:
        state[f"{conv}.weight"] = torch.randn(channels, inputs, size, size) * (2 / (inputs * size**2)) ** 0.5
        state[f"{norm}.weight"], state[f"{norm}.bias"] = torch.rand(channels) + 0.5, torch.randn(channels) / 5
        state[f"{norm}.running_mean"] = torch.randn(channels) / 5
        state[f"{norm}.running_var"] = torch.rand(channels) + 0.5

    for i in range(4):
        layer(f"head.aspp.b{i}.0", f"head.aspp.b{i}.1", 2048, 3 if i else 1)
    layer("head.aspp.b4.gap.1", "head.aspp.b4.gap.2", 2048, 1)
    layer("head.aspp.project.0", "head.aspp.project.1", 5 * channels, 1)
    for block, inputs in (("head.block", channels), ("auxlayer.conv5", 1024)):
        layer(f"{block}.0", f"{block}.1", inputs, 3)
        state[f"{block}.4.weight"] = torch.randn(classes, channels, 1, 1) / channels**0.5
        state[f"{block}.4.bias"] = torch.randn(classes)
    return {key: v.double().requires_grad_("running" not in key) for key, v in state.items()}


def _convert_segmentor(
    backbone: nn.Module, heads: Dict[str, Tensor], of: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> Dict[str, Tensor]:
    """The authors' weights, or what belongs to each of them, by our names."""
    state = {f"pretrained.{key}": value for key, value in backbone.state_dict(keep_vars=True).items()} | heads
    state = {key: of(value) if value.requires_grad else value for key, value in state.items()}
    conversion = convert(state)
    assert not conversion.missing_keys and not conversion.unexpected_keys
    return conversion.state


def _segmentor(depth: int) -> SemanticSegmentor:
    """Ours, without dropout."""
    dilated = {"res4_dilation": 2, "res5_dilation": 4, "contract_dilation": True}
    backbone = ResNeSt(depth, **dilated, out_features=["res4", "res5"])
    head = ResNeStDeepLabV3Head(backbone.output_shape(), num_classes=_CLASSES, aspp_dropout=0.0, dropout=0.0)
    return SemanticSegmentor(backbone=backbone, sem_seg_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)


#: Configurations that are compared: a depth, or one with deformable convolution v2.
PLUGIN = ("50", "101", "200", "269", "50 DCNv2")
#: Those whose training is also compared with the fast paths on.
FAST = ("50", "50 DCNv2")
#: With res5 dilated, which no FPN takes: its features alone are compared.
DILATED_PLUGIN = "50 dilated"


def plugin_cfg(name: str) -> list:
    depth, *options = name.split()
    cfg = [
        *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", int(depth), "MODEL.RESNETS.STRIDE_IN_1X1", False),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.RESNETS.NORM", "BN"),
        *("MODEL.BACKBONE.NAME", "build_resnest_backbone"),
    ]
    if "dilated" in options:
        cfg += ["MODEL.RESNETS.RES5_DILATION", 2]
    if "DCNv2" in options:
        cfg += [
            *("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]),
            *("MODEL.RESNETS.DEFORM_MODULATED", True, "MODEL.RESNETS.DEFORM_NUM_GROUPS", 2),
        ]
    return cfg


def detector_cfg(name: str) -> list:
    levels = ["p2", "p3", "p4", "p5"]
    return [
        *plugin_cfg(name),
        *("MODEL.BACKBONE.NAME", "build_resnest_fpn_backbone", "MODEL.FPN.NORM", "BN"),
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.RPN.IN_FEATURES", [*levels, "p6"], "MODEL.ROI_HEADS.IN_FEATURES", levels),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]]),
        *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
        *("MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.ROI_BOX_HEAD.FC_DIM", 128),
        *(
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
            7,
            "MODEL.MASK_ON",
            True,
            "MODEL.ROI_MASK_HEAD.NUM_CONV",
            1,
        ),
        *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 200, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16),
    ]


@functools.lru_cache
def _worker(package: str) -> subprocess.Popen:
    """A process for all comparisons of a package, whose import takes longer than most of them."""
    words = [sys.executable, Path(__file__).with_name("worker.py"), package]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _run(package: str, out: Path, weights: Optional[Path], **spec: Any) -> Dict[str, Any]:
    """What worker.py writes to ``out``."""
    file = out.with_suffix(".spec")
    torch.save({"weights": weights and str(weights), **spec}, file)
    worker = _worker(package)
    print(json.dumps([str(file), str(out)]), file=worker.stdin, flush=True)
    answer = worker.stdout.readline()
    if answer != '""\n':
        raise RuntimeError(f"{package}: {json.loads(answer) if answer else 'its process has ended'}")
    # Mapped, since hardly anybody looks at the weights; what is mapped outlives its file's name.
    return torch.load(out, mmap=True, weights_only=False)


def run_both(task: str, cfg: list, **inputs: Any) -> Dict[str, Dict[str, Any]]:
    """The task in the released code, then with its weights in ours, each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("theirs.pt", "ours.pt")]
        theirs = _run("resnest.d2", files[0], None, task=task, cfg=cfg, **inputs)
        ours = _run("resnest_d2", files[1], files[0], task=task, cfg=cfg, **inputs)
    assert theirs["shapes"] == ours["shapes"], "state dicts differ"
    return {"resnest.d2": theirs, "resnest_d2": ours}


def released_state(cfg: list) -> Dict[str, Tensor]:
    """Weights of a model of the released code, initialised at random."""
    with tempfile.TemporaryDirectory() as folder:
        return _run("resnest.d2", Path(folder, "theirs.pt"), None, task="state", cfg=cfg)["state"]


def plugin_features(name: str) -> Error:
    """Worst of res2 to res5 in eval mode, at an even and an odd size; state dicts must be identical."""
    torch.manual_seed(3)
    images = [torch.randn(2, 3, *size) for size in ((64, 96), (75, 101))]
    ours = ["MODEL.RESNETS.AVD_DILATED", False] if name == DILATED_PLUGIN else []
    outputs = run_both("features", plugin_cfg(name), images=images, ours=ours)
    pairs = zip(outputs["resnest_d2"]["result"], outputs["resnest.d2"]["result"])
    return max(relative(ours[f], theirs[f]) for ours, theirs in pairs for f in theirs)


def plugin_train_step(name: str, batch: list, fast: bool = False) -> Dict[str, Any]:
    """Worst of a Mask R-CNN's losses and of its parameters' gradients, and which parameters are frozen.

    Args:
        fast: ours runs channels-last, and keeps of its stages only what convolutions give.
    """
    outputs = run_both("train_step", detector_cfg(name), batches=[batch], fast=fast)
    ours, theirs = (outputs[p]["result"] for p in ("resnest_d2", "resnest.d2"))
    assert ours["losses"].keys() == theirs["losses"].keys()
    assert ours["gradients"].keys() == theirs["gradients"].keys()
    # Gradients that vanish but for rounding are compared with the largest of all.
    largest = max(g.abs().max().item() for g in theirs["gradients"].values())
    return {
        "losses": max(abs(ours["losses"][k] - v) / abs(v) for k, v in theirs["losses"].items()),
        "gradients": max(
            (ours["gradients"][k] - g).abs().max().item() / max(g.abs().max().item(), 1e-9 * largest)
            for k, g in theirs["gradients"].items()
        ),
        "frozen": (ours["frozen"], theirs["frozen"]),
    }


class Curves(NamedTuple):
    ours: List[float]
    theirs: List[float]

    @property
    def error(self) -> Error:
        return max(abs(a - b) / abs(b) for a, b in zip(self.ours, self.theirs))


def plugin_curves(batches: list) -> Curves:
    """Losses of SGD, one batch after the other."""
    outputs = run_both("sgd", detector_cfg("50"), batches=batches, lr=0.001)
    return Curves(outputs["resnest_d2"]["result"], outputs["resnest.d2"]["result"])
