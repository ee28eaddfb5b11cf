"""Published figures of the configurations, from the paper and the released model list.

Every AP here is the authors' (arXiv 2004.08955v1, tables 5 and 6, and their released model list); none
are ours.
"""

from __future__ import annotations

from typing import NamedTuple, Optional


class PublishedDetector(NamedTuple):
    """One row of the published COCO tables.

    Attributes:
        table: ``5`` or ``6`` of the paper, or ``released zoo`` for other rows of the released list.
        method: detector, as the paper calls it.
        backbone: backbone, as the paper calls it.
        params: parameters in millions as built with FREEZE_AT 2, whose frozen norms have none.
        box_ap, mask_ap: COCO val2017 AP in percent, single scale.
        pq: panoptic quality in percent.
        released: file name of the authors' trained detector; a suffix of hex digits is the start of its
            SHA-256. Their host stopped serving these in 2021.
    """

    table: str
    method: str
    backbone: str
    params: float
    box_ap: float
    mask_ap: Optional[float]
    pq: Optional[float]
    released: str


# fmt: off
DETECTORS = {
    "faster_resnet50": PublishedDetector("5", "Faster R-CNN", "ResNet-50", 43.06, 39.25, None, None,
        "faster_rcnn_R_50_FPN_syncbn_range-scale_1x-fde56e2b.pth"),
    "faster_resnet101": PublishedDetector("5", "Faster R-CNN", "ResNet-101", 62.06, 41.37, None, None,
        "faster_rcnn_R_101_FPN_syncbn_range-scale_1x-57c73356.pth"),
    "faster_resnest50": PublishedDetector("5", "Faster R-CNN", "ResNeSt-50", 44.99, 42.33, None, None,
        "faster_rcnn_ResNeSt_50_FPN_syncbn_range-scale_1x-ad123c0b.pth"),
    "faster_resnest50_dcn": PublishedDetector("released zoo", "Faster R-CNN", "ResNeSt-50-DCNv2", 45.86, 44.11, None, None,
        "faster_rcnn_ResNeSt_50_FPN_dcn_syncbn_range-scale_1x.pth"),
    "faster_resnest101": PublishedDetector("5", "Faster R-CNN", "ResNeSt-101", 65.78, 44.72, None, None,
        "faster_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x-d8f284b6.pth"),
    "cascade_resnet50": PublishedDetector("5", "Cascade R-CNN", "ResNet-50", 73.33, 42.52, None, None,
        "faster_cascade_rcnn_R_50_FPN_syncbn_range-scale_1x-3c7f2ef2.pth"),
    "cascade_resnet101": PublishedDetector("5", "Cascade R-CNN", "ResNet-101", 92.32, 44.03, None, None,
        "faster_cascade_rcnn_R_101_FPN_syncbn_range-scale_1x-4073359b.pth"),
    "cascade_resnest50": PublishedDetector("5", "Cascade R-CNN", "ResNeSt-50", 75.25, 45.41, None, None,
        "faster_cascade_rcnn_ResNeSt_50_FPN_syncbn_range-scale-1x-e9955232.pth"),
    "cascade_resnest101": PublishedDetector("5", "Cascade R-CNN", "ResNeSt-101", 96.05, 47.5, None, None,
        "faster_cascade_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x-3627ef78.pth"),
    "cascade_resnest200": PublishedDetector("5", "Cascade R-CNN", "ResNeSt-200", 117.97, 49.03, None, None,
        "faster_cascade_rcnn_ResNeSt_200_FPN_syncbn_range-scale_1x-1be2a87e.pth"),
    "mask_resnet50": PublishedDetector("6", "Mask R-CNN", "ResNet-50", 45.71, 39.97, 36.05, None,
        "mask_rcnn_R_50_FPN_syncbn_1x-4939bd58.pth"),
    "mask_resnet101": PublishedDetector("6", "Mask R-CNN", "ResNet-101", 64.7, 41.78, 37.51, None,
        "mask_rcnn_R_101_FPN_syncbn_1x-55493cc2.pth"),
    "mask_resnest50": PublishedDetector("6", "Mask R-CNN", "ResNeSt-50", 47.63, 42.81, 38.14, None,
        "mask_rcnn_ResNeSt_50_FPN_syncBN_1x-f442d863.pth"),
    "mask_resnest101": PublishedDetector("6", "Mask R-CNN", "ResNeSt-101", 68.43, 45.75, 40.65, None,
        "mask_rcnn_ResNeSt_101_FPN_syncBN_1x-528502c6.pth"),
    "cascade_mask_resnet50": PublishedDetector("6", "Cascade Mask R-CNN", "ResNet-50", 75.97, 43.06, 37.19, None,
        "mask_cascade_rcnn_R_50_FPN_syncbn_1x-03310c9b.pth"),
    "cascade_mask_resnet101": PublishedDetector("6", "Cascade Mask R-CNN", "ResNet-101", 94.97, 44.79, 38.52, None,
        "mask_cascade_rcnn_R_101_FPN_syncbn_1x-8cec1631.pth"),
    "cascade_mask_resnest50": PublishedDetector("6", "Cascade Mask R-CNN", "ResNeSt-50", 77.9, 46.19, 39.55, None,
        "mask_cascade_rcnn_ResNeSt_50_FPN_syncBN_1x-c58bd325.pth"),
    "cascade_mask_resnest101": PublishedDetector("6", "Cascade Mask R-CNN", "ResNeSt-101", 98.69, 48.3, 41.56, None,
        "mask_cascade_rcnn_ResNeSt_101_FPN_syncBN_1x-62448b9c.pth"),
    "cascade_mask_resnest200_3x": PublishedDetector("released zoo", "Cascade Mask R-CNN", "ResNeSt-200", 122.98, 50.54, 44.21, None,
        "mask_cascade_rcnn_ResNeSt_200_FPN_syncBN_all_tricks_3x.pth"),
    "cascade_mask_resnest200_dcn_3x": PublishedDetector("released zoo", "Cascade Mask R-CNN", "ResNeSt-200-DCNv2", 126.34, 50.91, 44.5, None,
        "mask_cascade_rcnn_ResNeSt_200_FPN_dcn_syncBN_all_tricks_3x-e1901134.pth"),
    "panoptic_resnest200_3x": PublishedDetector("released zoo", "Panoptic FPN (cascade heads)", "ResNeSt-200", 122.25, 51.0, 43.68, 47.9,
        "panoptic_ResNeSt_200_FPN_syncBN_tricks_3x-43f8b731.pth"),
}
# fmt: on
