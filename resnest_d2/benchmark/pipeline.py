"""Whether training waits for images: how many the loader delivers, and how many the model uses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tqdm import tqdm

from .. import model_zoo
from ..config import CLASSIFIER
from ..data import generate_shapes, register_pairs
from ..data.image_folder import register_image_folder
from ..data.loader import build_train_loader
from ..engine.fit import fit_to_machine
from ..engine.trainer import Trainer

#: Numbers of worker processes; with 0 the training process loads the images itself.
WORKERS = (0, 1, 2)
#: For each configuration, the (width, height) in pixels of its images, and their number.
PIPELINES = {
    "quickstart": (((192, 128), (128, 192)), 64),
    "mask_resnest50": (((640, 480), (480, 640)), 32),
    "classification/resnest50": (((500, 375), (375, 500)), 64),
}


class Pipeline(NamedTuple):
    """Images per second of one configuration.

    Attributes:
        config: its name.
        images: the sizes of the image files.
        batch: images per iteration.
        loaded: images per second of the training loader alone, by number of workers.
        trained: images per second of training alone, on one batch.
    """

    config: str
    images: str
    batch: int
    loaded: Dict[str, float]
    trained: float


def measure_pipeline(name: str, folder: Path, device: str, seconds: float = 10) -> Pipeline:
    """Load for ``seconds`` with each number of workers, then train for two iterations.

    Args:
        folder: where the generated images are written.
    """
    sizes, count = PIPELINES[name]
    generate_shapes(folder, num_images={"train": count}, sizes=sizes)
    cfg = model_zoo.get_config(name)
    cfg.DATASETS.TRAIN = _register(cfg, folder)
    cfg.SEED, cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = 0, "", device
    most = 2 if device != "cuda" else 128 if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER else 16
    cfg.SOLVER.IMS_PER_BATCH = batch = min(cfg.SOLVER.IMS_PER_BATCH, most)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    fit_to_machine(cfg, processes=1)
    loaded = {}
    for workers in tqdm(WORKERS, desc=f"loading as {name} does"):
        cfg.DATALOADER.NUM_WORKERS = workers
        batches = iter(build_train_loader(cfg))
        some = next(batches)
        start, images = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            images += len(next(batches))
        loaded[str(workers)] = images / (time.perf_counter() - start)
        del batches
    return Pipeline(name, " or ".join(f"{w}x{h}" for w, h in sizes), batch, loaded, _trained(cfg, some))


def _register(cfg: CfgNode, folder: Path) -> List[str]:
    """Register the images with their objects, or for a classifier in one folder of a class."""
    if cfg.MODEL.META_ARCHITECTURE != CLASSIFIER:
        pair = (str(folder / "annotations/instances_train.json"), str(folder / "train"))
        return register_pairs("train", [pair], {})
    (folder / "classes").mkdir()
    (folder / "train").rename(folder / "classes/shapes")
    pair = (str(folder / "classes"),) * 2
    return register_pairs("train", [pair], {"image_classes": ["shapes"]}, register_image_folder)


def _trained(cfg: CfgNode, batch: List[Dict[str, Any]]) -> float:
    model = Trainer.build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    seconds = []
    with EventStorage():
        for _ in tqdm(range(3), desc="training on one batch"):
            start = time.perf_counter()
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            if cfg.MODEL.DEVICE == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return len(batch) / min(seconds[1:])  # the first warms up
