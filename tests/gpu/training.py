"""Training steps of detectors in mixed precision, and the command line's runs."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Callable, List

import torch
from detectron2.utils.events import EventStorage
from robust import tiny

from resnest_d2 import model_zoo
from resnest_d2.benchmark import worker
from resnest_d2.engine import Trainer
from resnest_d2.engine.fit import fit_to_machine
from resnest_d2.engine.step import TrainStep

from .registry import Place, check

STAGES = ["res2", "res3", "res4", "res5"]
#: What is trained beside plain PyTorch in one memory format, and the settings that make it so.
VARIANTS = {
    "kernels": {},
    "channels_last": {"MODEL.MEMORY_FORMAT": "channels_last"},
    "blocks_inputs_kept": {"MODEL.RESNETS.CHECKPOINT_STAGES": STAGES},
    "convolutions_outputs_kept": {
        "MODEL.RESNETS.CHECKPOINT_STAGES": STAGES,
        "MODEL.RESNETS.CHECKPOINT_KEEPS": "convolutions",
    },
}
ITERATIONS = 8
PLAIN = {"MODEL.RESNETS.FUSED_KERNELS": False, "MODEL.MEMORY_FORMAT": "contiguous"}
#: Of the rehearsal, beside a variant's. Triton's interpreter would take minutes for a step.
SMALL = {
    **{"MODEL.RESNETS.DEPTH": 14, "MODEL.FPN.OUT_CHANNELS": 32, "MODEL.ROI_BOX_HEAD.FC_DIM": 64},
    **{"MODEL.ROI_MASK_HEAD.CONV_DIM": 16, "MODEL.ROI_BOX_HEAD.CONV_DIM": 16},
    **{"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32, "MODEL.RESNETS.FUSED_KERNELS": False},
    **{"MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 32, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64},
    "MODEL.RESNETS.BOTTLENECK_WIDTH": 16,
}


def detection_batch(place: Place) -> List[dict]:
    """Two images with objects, of the size that recipes train on."""
    request = {"task": "detector training", "batch": 2, "size": (64, 96) if place.small else (800, 1216)}
    return worker.inputs({**request, "device": place.device.type})


def losses(
    place: Place,
    settings: dict,
    iterations: int,
    name: str = "mask_resnest50",
    make_batch: Callable[[Place], List[dict]] = detection_batch,
) -> List[float]:
    """Of a recipe of ResNeSt-50 on one batch."""
    cfg = model_zoo.get_config(name)
    words = {"MODEL.WEIGHTS": "", "MODEL.DEVICE": place.device.type, "INPUT.MASK_FORMAT": "bitmask"}
    words.update({"SOLVER.IMS_PER_BATCH": 2, "SOLVER.REFERENCE_WORLD_SIZE": 0, "SOLVER.BASE_LR": 0.005})
    words.update({**(SMALL if place.small else {}), **settings})
    cfg.merge_from_list([part for item in words.items() for part in item])
    fit_to_machine(cfg, processes=1)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).train()
    batch = make_batch(place)
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg.SOLVER.BASE_LR, momentum=0.9)
    options = {"amp": True, "seed": 0, "max_skipped": 0}
    with tempfile.TemporaryDirectory() as folder, EventStorage() as storage:
        step = TrainStep(model, [batch] * iterations, optimizer, output_dir=folder, **options)
        for step.iter in range(iterations):
            step.run_step()
            storage.step()
        return [value for value, _ in storage.history("total_loss").values()]


def assert_falls(values: List[float]) -> None:
    # Proposals are drawn anew in each iteration, and so move its loss.
    assert len(values) == ITERATIONS and min(values[-3:]) < values[0], values


@check("mixed_precision_plain")
def mixed_precision(place: Place, settings: dict = PLAIN) -> str:
    """The loss is finite and falls, and begins where that of plain PyTorch does."""
    values = losses(place, {"MODEL.MEMORY_FORMAT": "contiguous", **settings}, ITERATIONS)
    assert_falls(values)
    if settings is not PLAIN:
        (plain,) = losses(place, PLAIN, 1)
        assert abs(values[0] - plain) < 0.05 * plain, f"first loss {values[0]:.4f}, of plain {plain:.4f}"
    return "loss " + ", ".join(f"{value:.3f}" for value in values)


for _name, _settings in VARIANTS.items():
    _function = partial(mixed_precision, settings=_settings)
    _function.__module__ = __name__
    check(f"mixed_precision_{_name}")(_function)


@check()
def mixed_precision_deformable(place: Place) -> str:
    """From weights that differ from plain ones, as offsets are drawn too."""
    stages = [False, True, True, True]
    values = losses(place, {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": stages}, ITERATIONS)
    assert_falls(values)
    return "loss " + ", ".join(f"{value:.3f}" for value in values)


def labelled_images(place: Place) -> List[dict]:
    size = (64, 64) if place.small else (224, 224)
    batch = 4 if place.small else 64
    images = torch.randint(0, 255, (batch, 3, *size), dtype=torch.uint8)
    return [{"image": image, "label": i % 10} for i, image in enumerate(images)]


@check()
def mixed_precision_classifier(place: Place) -> str:
    """With mixup, smoothed labels and DropBlock, as in the recipe."""
    settings = {"MODEL.CLASSIFIER.DROP_BLOCK.PROB": 0.1, "SOLVER.BASE_LR": 0.05}
    values = losses(place, settings, ITERATIONS, "classification/resnest50", labelled_images)
    assert_falls(values)
    return "loss " + ", ".join(f"{value:.3f}" for value in values)


def labelled_pixels(place: Place) -> List[dict]:
    size = (64, 64) if place.small else (480, 480)
    images = torch.randint(0, 255, (4, 3, *size), dtype=torch.uint8)
    labels = (images[:, 0] > 127).long()
    return [{"image": image, "sem_seg": sem_seg} for image, sem_seg in zip(images, labels)]


@check()
def mixed_precision_segmentation(place: Place) -> str:
    """DeepLabV3 with dilated stages and its auxiliary head."""
    values = losses(place, {}, ITERATIONS, "segmentation/deeplabv3_resnest50_ade20k", labelled_pixels)
    assert_falls(values)
    return "loss " + ", ".join(f"{value:.3f}" for value in values)


def run_command(place: Place, data: List[str], output: Path, iterations: int, *settings, flags=()) -> str:
    """tools/train_net.py on a tiny detector, in mixed precision. Returns its log."""
    settings = ("MODEL.DEVICE", place.device.type, "SOLVER.AMP.ENABLED", True, *settings)
    log = output.parent / "log"
    process = tiny.start(tiny.command(data, output, iterations, *settings, flags=flags), log)
    assert process.wait(150) == 0, log.read_text().strip().splitlines()[-1]
    return log.read_text()


@check()
def resume(place: Place) -> None:
    """From a checkpoint of a run with mixed precision, and from one without."""
    with tempfile.TemporaryDirectory() as folder:
        data = tiny.make_data(Path(folder))
        for amp in (True, False):
            output = Path(folder, f"amp_{amp}", "out")
            output.parent.mkdir()
            run_command(place, data, output, 4, "SOLVER.AMP.ENABLED", amp)
            log = run_command(place, data, output, 8, flags=("--resume",))
            assert "Starting training from iteration 4" in log
            assert (output / "results.json").exists()


@check()
def command_on_all_devices(place: Place) -> str:
    with tempfile.TemporaryDirectory() as folder:
        data, output = tiny.make_data(Path(folder)), Path(folder, "out")
        images = ("SOLVER.IMS_PER_BATCH", 2 * place.count)
        log = run_command(place, data, output, 4, *images, flags=("--num-gpus", str(place.count)))
        assert "Starting training from iteration 0" in log and (output / "model_final.pth").exists()
    return f"{place.count} processes"
