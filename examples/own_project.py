"""A ResNeSt backbone in your own detectron2 project, with detectron2's configuration, trainer and evaluator.

python examples/own_project.py SOLVER.MAX_ITER 300
"""

import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.evaluation import COCOEvaluator

from resnest_d2 import add_resnest_config, model_zoo
from resnest_d2.data import generate_shapes


def setup(overrides: list[str]) -> CfgNode:
    cfg = get_cfg()
    add_resnest_config(cfg)
    # Backbone, heads, and images as published weights expect them; nothing else of this package is needed.
    cfg.merge_from_file(model_zoo.get_config_file("faster_resnest50"))
    # Small and from scratch, for the CPU, which has no SyncBN. To fine-tune on a GPU, leave this block out.
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.WEIGHTS = 14, 0, ""
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = cfg.MODEL.ROI_BOX_HEAD.NORM = "BN"
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 64
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 1, 64
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 100
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, cfg.INPUT.MIN_SIZE_TRAIN = "choice", (128,)
    cfg.INPUT.MIN_SIZE_TEST = 128
    cfg.TEST.PRECISE_BN.NUM_ITER = 10

    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.TEST.EXPECTED_RESULTS = 3, []  # the recipe's are for COCO
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("my_train",), ("my_val",)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = 4, 0.005, 10
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.DATALOADER.NUM_WORKERS = 20, (), 0
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.OUTPUT_DIR = "output/own_project"
    cfg.merge_from_list(overrides)
    return cfg


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


if __name__ == "__main__":
    cfg = setup(sys.argv[1:])
    default_setup(cfg, None)
    data = Path(cfg.OUTPUT_DIR, "data")  # generated images in place of yours, annotated in COCO format
    if not data.exists():
        generate_shapes(data, num_images={"train": 80, "val": 20})
    for split in ("train", "val"):
        register_coco_instances(f"my_{split}", {}, data / f"annotations/instances_{split}.json", data / split)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()  # evaluates at the end
