"""Your own head on a ResNeSt backbone: it tells objects from background, whatever their class.

python examples/own_head.py SOLVER.MAX_ITER 100
"""

import sys

import torch
from detectron2.config import configurable
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from resnest_d2 import model_zoo


@SEM_SEG_HEADS_REGISTRY.register()
class ForegroundHead(nn.Module):
    @configurable
    def __init__(self, shape: ShapeSpec, *, width: int) -> None:
        super().__init__()
        self.ignore_value = 255  # SemanticSegmentor pads targets with it
        hidden = Conv2d(shape.channels, width, 3, padding=1, activation=nn.functional.relu)
        self.layers = nn.Sequential(hidden, Conv2d(width, 2, 1), nn.Upsample(None, shape.stride, "bilinear"))

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        return {"shape": input_shape["res3"], "width": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM}

    def forward(self, features, targets=None):
        logits = self.layers(features["res3"])  # (N, 2, H, W)
        if not self.training:
            return logits, {}
        return None, {"loss": nn.functional.cross_entropy(logits, targets, ignore_index=self.ignore_value)}


class ForegroundMapper(DatasetMapper):
    def __call__(self, record: dict) -> dict:
        record = super().__call__(record)
        return {**record, "sem_seg": record["instances"].gt_masks.tensor.any(0).long()}


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=ForegroundMapper(cfg, is_train=True))


if __name__ == "__main__":
    cfg = model_zoo.get_config("quickstart")  # generated images of shapes, and a backbone for the CPU
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NAME = "SemanticSegmentor", "ForegroundHead"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.OUT_FEATURES = "build_resnest_backbone", ["res3"]
    cfg.INPUT.MASK_FORMAT, cfg.DATASETS.TEST, cfg.OUTPUT_DIR = "bitmask", (), "output/own_head"
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 0.02, 20, 5
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.merge_from_list(sys.argv[1:])
    default_setup(cfg, None)
    Trainer(cfg).train()
