"""Published figures of semantic segmentation, from the paper and the authors' released list.

All are the authors' (arXiv 2004.08955v1, table 7, and the model list of PyTorch-Encoding), with multi-scale and
flipped testing; none are ours.
"""

from __future__ import annotations

from typing import NamedTuple, Optional


class PublishedSegmentor(NamedTuple):
    """One row of the published segmentation tables.

    Attributes:
        table: ``7`` of the paper, or ``released zoo`` for other rows of the released list.
        method: method, as the paper calls it.
        backbone: backbone, as the paper calls it.
        dataset: whose validation images are tested.
        params: parameters in millions as built here, with the auxiliary head.
        miou, pixel_accuracy: in percent.
        released: file name of the authors' trained model, if they released one; its suffix of hex digits is the
            start of its SHA-1.
    """

    table: str
    method: str
    backbone: str
    dataset: str
    params: float
    miou: float
    pixel_accuracy: Optional[float]
    released: Optional[str]


#: By a row's dataset: the name that detectron2 registers, and its number of validation images.
VALIDATION = {"ADE20K": ("ade20k_sem_seg_val", 2000), "Cityscapes": ("cityscapes_fine_sem_seg_val", 500)}

# fmt: off
SEGMENTORS = {
    "segmentation/deeplabv3_resnet50_ade20k": PublishedSegmentor("7", "DeepLabV3", "ResNet-50", "ADE20K", 42.19, 42.1, 80.39, None),
    "segmentation/deeplabv3_resnet101_ade20k": PublishedSegmentor("7", "DeepLabV3", "ResNet-101", "ADE20K", 61.19, 44.14, 81.11, None),
    "segmentation/deeplabv3_resnest50_ade20k": PublishedSegmentor("7", "DeepLabV3", "ResNeSt-50", "ADE20K", 44.0, 45.12, 81.17, "deeplab_resnest50_ade-2225f09d.pth"),
    "segmentation/deeplabv3_resnest101_ade20k": PublishedSegmentor("7", "DeepLabV3", "ResNeSt-101", "ADE20K", 64.79, 46.91, 82.07, "deeplab_resnest101_ade-06ca799c.pth"),
    "segmentation/deeplabv3_resnest200_ade20k": PublishedSegmentor("released zoo", "DeepLabV3", "ResNeSt-200", "ADE20K", 86.71, 48.36, 82.45, "deeplab_resnest200_ade-7b9e7d3e.pth"),
    "segmentation/deeplabv3_resnest269_ade20k": PublishedSegmentor("released zoo", "DeepLabV3", "ResNeSt-269", "ADE20K", 127.44, 47.6, 82.62, "deeplab_resnest269_ade-0074dd10.pth"),
    "segmentation/deeplabv3_resnet50_cityscapes": PublishedSegmentor("7", "DeepLabV3", "ResNet-50", "Cityscapes", 42.13, 78.72, None, None),
    "segmentation/deeplabv3_resnet101_cityscapes": PublishedSegmentor("7", "DeepLabV3", "ResNet-101", "Cityscapes", 61.12, 79.42, None, None),
    "segmentation/deeplabv3_resnest50_cityscapes": PublishedSegmentor("7", "DeepLabV3", "ResNeSt-50", "Cityscapes", 43.93, 79.87, None, None),
    "segmentation/deeplabv3_resnest101_cityscapes": PublishedSegmentor("7", "DeepLabV3", "ResNeSt-101", "Cityscapes", 64.72, 80.42, None, None),
}
# fmt: on
