"""Sources of published ImageNet weights, by name. The files belong to their authors; see README."""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

#: Release assets of zhanghang1989/ResNeSt, tag weights_step1.
OFFICIAL_URL = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/"
#: Files of a model on the Hugging Face hub.
HUB_URL = "{endpoint}/{model}/resolve/{revision}/model.safetensors"


class PretrainedWeights(NamedTuple):
    """Published weights of one ImageNet classifier.

    Attributes:
        official: the authors' file; the eight hex digits in its name are the start of its SHA-256.
        hub: timm's model id on the hub.
        others: files from other sources that users may have.
        crop, top1: size in pixels at which the authors report their top-1 accuracy, in percent.
    """

    official: Optional[str] = None
    hub: Optional[str] = None
    others: Tuple[str, ...] = ()
    crop: Optional[int] = None
    top1: Optional[float] = None

    @property
    def files(self) -> Tuple[str, ...]:
        """File names under which the weights may be found in a folder."""
        return (() if self.official is None else (self.official,)) + self.others


# fmt: off
BACKBONES = {
    "resnest14": PretrainedWeights(hub="timm/resnest14d.gluon_in1k"),
    "resnest26": PretrainedWeights(hub="timm/resnest26d.gluon_in1k"),
    "resnest50": PretrainedWeights("resnest50-528c19ca.pth", "timm/resnest50d.in1k",
        ("resnest50_d2-7497a55b.pth", "resnest50_detectron-255b5649.pth"), 224, 81.03),
    "resnest101": PretrainedWeights("resnest101-22405ba7.pth", "timm/resnest101e.in1k",
        ("resnest101_d2-f3b931b2.pth", "resnest101_detectron-486f69a8.pth"), 256, 82.83),
    "resnest200": PretrainedWeights("resnest200-75117900.pth", "timm/resnest200e.in1k",
        ("resnest200_d2-ca88e41f.pth", "resnest200_detectron-02644020.pth"), 320, 83.84),
    "resnest269": PretrainedWeights("resnest269-0cc87c48.pth", "timm/resnest269e.in1k",
        ("resnest269_detectron-69df4066.pth",), 416, 84.54),
    # ResNet with a deep stem of width 64: the baselines of the segmentation tables.
    "resnet50s": PretrainedWeights(others=("resnet50s-a75c83cf.pth",)),
    "resnet101s": PretrainedWeights(others=("resnet101s-03a0f310.pth",)),
    "resnest50_fast_1s1x64d": PretrainedWeights("resnest50_fast_1s1x64d-d8fbf808.pth"),
    "resnest50_fast_2s1x64d": PretrainedWeights("resnest50_fast_2s1x64d-44938639.pth"),
    "resnest50_fast_4s1x64d": PretrainedWeights("resnest50_fast_4s1x64d-f74f3fc3.pth"),
    "resnest50_fast_1s2x40d": PretrainedWeights("resnest50_fast_1s2x40d-32830b84.pth"),
    "resnest50_fast_2s2x40d": PretrainedWeights("resnest50_fast_2s2x40d-9d126481.pth"),
    "resnest50_fast_4s2x40d": PretrainedWeights("resnest50_fast_4s2x40d-41d14ed0.pth",
        "timm/resnest50d_4s2x40d.in1k"),
    "resnest50_fast_1s4x24d": PretrainedWeights("resnest50_fast_1s4x24d-d4a4f76f.pth",
        "timm/resnest50d_1s4x24d.in1k"),
}
# fmt: on
