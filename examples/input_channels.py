"""A fourth input channel, such as infrared or depth, starting from weights for RGB images if they are given.

python examples/input_channels.py MODEL.WEIGHTS resnest://resnest50 MODEL.RESNETS.DEPTH 50
"""

import copy
import sys

import numpy as np
import torch
from detectron2.data import DatasetMapper, build_detection_train_loader, detection_utils
from detectron2.data import transforms as T
from detectron2.engine import DefaultTrainer, default_setup

from resnest_d2 import model_zoo
from resnest_d2.checkpoint import convert, local_weights, read_weights, write_weights


def widen(weights: str, target: str) -> str:
    """Write a copy of backbone weights whose first convolution takes a fourth channel."""
    conversion = convert(read_weights(local_weights(weights)))
    rgb = conversion.state["stem.conv1_1.weight"]  # (width, 3, 3, 3)
    # The mean makes the fourth channel count as much as each of the others; zeros would hide it at first.
    conversion.state["stem.conv1_1.weight"] = torch.cat([rgb, rgb.mean(1, keepdim=True)], 1)
    write_weights(conversion, target)
    return target


class FourChannelMapper(DatasetMapper):
    def __call__(self, record: dict) -> dict:
        record = copy.deepcopy(record)
        rgb = detection_utils.read_image(record["file_name"], "RGB")
        fourth = rgb.max(2, keepdims=True)  # in place of yours, which you would read from a file
        # uint8 would be resized by Pillow, which takes a fourth channel for opacity and changes the others.
        inputs = T.AugInput(np.concatenate([rgb, fourth], 2).astype(np.float32))
        transforms = self.augmentations(inputs)
        record["image"] = torch.from_numpy(inputs.image.transpose(2, 0, 1).copy())
        self._transform_annotations(record, transforms, inputs.image.shape[:2])
        return record


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=FourChannelMapper(cfg, is_train=True))


if __name__ == "__main__":
    cfg = model_zoo.get_config("quickstart")  # generated images; one input channel per mean:
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [*cfg.MODEL.PIXEL_MEAN, 128.0], [*cfg.MODEL.PIXEL_STD, 64.0]
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (), "output/input_channels"
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 0.005, 20, 5
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.merge_from_list(sys.argv[1:])
    default_setup(cfg, None)
    if cfg.MODEL.WEIGHTS:
        cfg.MODEL.WEIGHTS = widen(cfg.MODEL.WEIGHTS, f"{cfg.OUTPUT_DIR}/four_channels.pth")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
