"""What the recipes share, on top of detectron2's own lazy configurations.

A recipe is ``model, dataloader, optimizer, lr_multiplier, train``, the names that detectron2's
``lazyconfig_train_net.py`` takes. Settings are those of ``configs/base/``, whose files say what they are.
"""

from pathlib import Path
from typing import Any, Dict, NamedTuple, Tuple

import detectron2
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig

from resnest_d2 import ResNeSt, UserError
from resnest_d2.evaluation.coco import COCOEvaluator

Recipe = Tuple[DictConfig, DictConfig, DictConfig, DictConfig, DictConfig]

NORM = "SyncBN"
WARMUP = 1000  # iterations
#: The images that ImageNet weights were trained on: order of colours, mean and standard deviation.
RGB = {"input_format": "RGB", "pixel_mean": [123.68, 116.779, 103.939], "pixel_std": [58.393, 57.12, 57.375]}
BGR = {"input_format": "BGR", "pixel_mean": [103.53, 116.28, 123.675], "pixel_std": [1.0, 1.0, 1.0]}

_FEATURES = ["res2", "res3", "res4", "res5"]
_BOX_HEAD = {"conv_dims": [256] * 4, "fc_dims": [1024], "conv_norm": NORM}
_MASK_SIZES = (640, 672, 704, 736, 768, 800)


class Backbone(NamedTuple):
    """A network below the FPN, its ImageNet weights, and the images that these expect."""

    network: DictConfig
    weights: str
    images: Dict[str, Any]


def resnest(depth: int, dcn: bool = False) -> Backbone:
    """ResNeSt; with ``dcn``, deformable convolution v2 in res3, res4 and res5."""
    network = L(ResNeSt)(depth=depth, norm=NORM, freeze_at=2, out_features=_FEATURES)
    if dcn:
        network.deform_on_per_stage = [False, True, True, True]
        network.update(deform_modulated=True, deform_num_groups=2)
    return Backbone(network, f"resnest://resnest{depth}", RGB)


def resnet(depth: int) -> Backbone:
    """detectron2's ResNet with strides where the MSRA weights have them."""
    network = L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm=NORM),
        stages=L(ResNet.make_default_stages)(depth=depth, stride_in_1x1=True, norm=NORM),
        freeze_at=2,
        out_features=_FEATURES,
    )
    return Backbone(network, f"detectron2://ImageNetPretrained/MSRA/R-{depth}.pkl", BGR)


def faster(backbone: Backbone, masks: bool = False, tricks: bool = False) -> Recipe:
    """Faster R-CNN; Mask R-CNN with ``masks``. ``tricks`` are those of the released 3x recipes with masks."""
    model = _of_detectron2("models/mask_rcnn_fpn.py", "model")
    model.roi_heads.box_head.update(_BOX_HEAD)
    return _recipe(model, backbone, masks, tricks)


def cascade(backbone: Backbone, masks: bool = False, tricks: bool = False) -> Recipe:
    """Cascade R-CNN. For the arguments see :func:`faster`."""
    model = _of_detectron2("models/cascade_rcnn.py", "model")
    model.proposal_generator.post_nms_topk = (2000, 1000)
    for head in model.roi_heads.box_heads:
        head.update(_BOX_HEAD)
    return _recipe(model, backbone, masks, tricks)


def _of_detectron2(file: str, name: str) -> DictConfig:
    """Read a part of detectron2's recipes. detectron2.model_zoo, which would, needs pkg_resources."""
    path = Path(detectron2.__file__).parent / "model_zoo/configs/common" / file
    if not path.is_file():
        raise UserError(f"detectron2's own configuration {path} is not there; install detectron2 again")
    return LazyConfig.load(str(path), name)


def _recipe(model: DictConfig, backbone: Backbone, masks: bool, tricks: bool) -> Recipe:
    model.update(backbone.images)
    model.backbone.update(bottom_up=backbone.network, norm=NORM)
    if masks:
        model.roi_heads.mask_head.update(conv_dims=[256] * (9 if tricks else 5), conv_norm=NORM)
    else:
        for part in ("mask_in_features", "mask_pooler", "mask_head"):
            del model.roi_heads[part]
    iterations, steps = (270000, [240000, 255000]) if tricks else (90000, [60000, 80000])
    optimizer = _of_detectron2("optim.py", "SGD")
    optimizer.lr = 0.02
    train = _of_detectron2("train.py", "train")
    # Evaluated once, at the end.
    train.update(init_checkpoint=backbone.weights, max_iter=iterations, eval_period=0)
    dataloader = _coco(backbone.images["input_format"], masks, tricks)
    return model, dataloader, optimizer, _schedule(steps, iterations), train


def _coco(image_format: str, masks: bool, tricks: bool) -> DictConfig:
    """Batches of 16 images of COCO 2017, and the evaluator of AP."""
    dataloader = _of_detectron2("data/coco.py", "dataloader")
    resize = L(T.ResizeShortestEdge)(short_edge_length=(640, 800), sample_style="range", max_size=1333)
    if masks:
        resize.update(short_edge_length=_MASK_SIZES, sample_style="choice")
    if tricks:
        resize.update(short_edge_length=(640, 864), sample_style="range", max_size=1440)
    crop = L(T.RandomCrop)(crop_type="relative_range", crop_size=[0.9, 0.9])
    dataloader.train.mapper.update(
        augmentations=[*([crop] if tricks else []), resize, L(T.RandomFlip)(horizontal=True)],
        image_format=image_format,
        use_instance_mask=masks,
        recompute_boxes=tricks,
    )
    dataloader.train.total_batch_size = 16
    dataloader.evaluator.update(_target_=COCOEvaluator, tasks=("bbox", "segm") if masks else ("bbox",))
    return dataloader


def _schedule(steps: list, iterations: int) -> DictConfig:
    """Multiples of the learning rate: a tenth from each step on, after a linear warmup."""
    factors = [0.1**step for step in range(len(steps) + 1)]
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(values=factors, milestones=steps, num_updates=iterations),
        warmup_factor=0.001,
        warmup_length=WARMUP / iterations,
        warmup_method="linear",
    )
