"""A training run of seconds that has all parts of a long one: data, model, checkpoints, evaluation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Tuple

import forks
import numpy as np
import torch
from PIL import Image
from support import ROOT

from resnest_d2.data import generate_shapes

#: Narrow enough for 30 iterations a second on a CPU.
SETTINGS = (
    *("MODEL.RESNETS.DEPTH", 14, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.RESNETS.BOTTLENECK_WIDTH", 8),
    *("MODEL.FPN.OUT_CHANNELS", 8, "MODEL.ROI_BOX_HEAD.CONV_DIM", 8, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.MASK_ON", False),
    *("TEST.DETECTIONS_PER_IMAGE", 5, "TEST.PRECISE_BN.NUM_ITER", 2, "SOLVER.IMS_PER_BATCH", 2),
    *("SOLVER.CHECKPOINT_PERIOD", 4, "SOLVER.CHECKPOINTS_TO_KEEP", 2, "SOLVER.STEPS", "()", "SEED", 1),
)


#: The same for semantic segmentation.
SEGMENTATION = (
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.RESNETS.BOTTLENECK_WIDTH", 16),
    *("MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 8, "INPUT.SCALE_CROP.LONG_SIZE", (64, 96)),
    *("INPUT.SCALE_CROP.CROP_SIZE", 48, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.CHECKPOINT_PERIOD", 4),
    *("SOLVER.CHECKPOINTS_TO_KEEP", 2, "SEED", 1),
)


def make_data(folder: Path) -> List[str]:
    """24 + 4 images of shapes, and the arguments that name them."""
    generate_shapes(folder / "shapes", num_images={"train": 24, "val": 4})
    return shapes(folder / "shapes")


def shapes(folder: Path) -> List[str]:
    """The arguments that name generated images."""
    return own_data(
        *((folder / f"annotations/instances_{split}.json", folder / split) for split in ("train", "val"))
    )


def own_data(train: Tuple[Path, Path], val: Tuple[Path, Path]) -> List[str]:
    """The arguments that name annotation files and their folders of images."""
    words = []
    for split, (file, images) in (("train", train), ("val", val)):
        words += [f"--{split}-json", file, f"--{split}-images", images]
    return [str(word) for word in words]


#: The same for image classification.
CLASSIFICATION = (
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.RESNETS.BOTTLENECK_WIDTH", 16, "SOLVER.IMS_PER_BATCH", 4),
    *("INPUT.CLASSIFICATION.TRAIN_CROP", 32, "INPUT.CLASSIFICATION.TEST_CROP", 32),
    *("SOLVER.CHECKPOINT_PERIOD", 4, "SOLVER.CHECKPOINTS_TO_KEEP", 2, "SEED", 1, "SOLVER.WARMUP_ITERS", 0),
)


def make_folders(folder: Path) -> List[str]:
    """12 + 6 images of three colours in a folder for each, and the arguments that name them."""
    rng, words = np.random.default_rng(0), []
    for split, count in (("train", 4), ("val", 2)):
        for i, name in enumerate(("blue", "green", "red")):
            (folder / split / name).mkdir(parents=True)
            for j in range(count):
                pixels = rng.integers(0, 100, (40, 48, 3)) + 150 * np.eye(3, dtype=int)[2 - i]
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{j}.png")
        words += [f"--{split}-images", str(folder / split)]
    return words


def make_masks(folder: Path) -> List[str]:
    """12 + 4 images of coloured squares with their label maps, and the arguments that name them."""
    rng, words = np.random.default_rng(0), []
    (folder / "classes.json").write_text(json.dumps(["ground", "red", "green"]))
    for split, count in (("train", 12), ("val", 4)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
            words += [f"--{split}-{kind}", str(folder / split / kind)]
        for i in range(count):
            labels = np.zeros((64, 80), np.uint8)
            for label in (1, 2):
                y, x = rng.integers(0, 40, 2)
                labels[y : y + 24, x : x + 24] = label
            pixels = rng.integers(0, 80, (*labels.shape, 3)) + 150 * np.eye(3, dtype=int)[labels]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"images/{i}.png")
            Image.fromarray(labels).save(folder / split / f"masks/{i}.png")
    return [*words, "--classes", str(folder / "classes.json")]


def command(
    data: List[str], output: Path, iterations: int, *settings: object, flags: tuple = ()
) -> List[str]:
    """The arguments of ``train_net.py``, for the kind of the data."""
    config, of_task = "quickstart", SETTINGS
    if "--train-masks" in data:
        config, of_task = "segmentation/deeplabv3_resnest14_small", SEGMENTATION
    elif "--train-images" in data and "--train-json" not in data:
        config, of_task = "classification/resnest14_small", CLASSIFICATION
    words = [ROOT / "tools/train_net.py", "--config-file", ROOT / f"configs/{config}.yaml", *flags, *data]
    words += [*of_task, "OUTPUT_DIR", output]
    words += ["SOLVER.MAX_ITER", iterations, *settings]
    return [str(word) for word in words]


def start(words: List[str], log: Path, *python: str, env: Dict[str, str] = {}) -> subprocess.Popen:  # noqa: B006
    """A process, in a session of its own, whose output is appended to a file."""
    return subprocess.Popen(
        [sys.executable, *python, *words],
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**environment(), **env},
        preexec_fn=_as_from_a_terminal,
    )


def _as_from_a_terminal() -> None:
    """Let Ctrl-C end the process, which a shell's background jobs ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def fork(words: List[str], log: Path, *python: str, env: Dict[str, str] = {}) -> forks.Process:  # noqa: B006
    """The same without the seconds that imports take: a forked copy of a process that has them done."""
    return forks.start([*python, *words], log, cwd=Path.cwd(), environment={**environment(), **env})


def finish(words: List[str], log: Path) -> None:
    """The same for a run that is to end by itself, and well."""
    assert fork(words, log).wait(300) == 0, log.read_text()[-3000:]


def environment() -> Dict[str, str]:
    """One thread, since sums over more depend on their number, and so do the last bits of the weights."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def weights(output: Path) -> Dict[str, torch.Tensor]:
    """The final weights."""
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def equal(a: Dict[str, torch.Tensor], b: Dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
