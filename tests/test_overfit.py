"""That a detector learns: a small one must fit a handful of real images."""

import json

import pytest
from detectron2.data.datasets import register_coco_instances
from support import of_images

from resnest_d2 import engine, model_zoo

# Beside other tests, and on one processor.
pytestmark = [pytest.mark.long(5), pytest.mark.timeout(2400)]
NUM_IMAGES = 6


@pytest.fixture
def handful(coco_root, tmp_path) -> str:
    """A registered dataset of the first real COCO images that hold one to eight objects and no crowd."""
    full = json.loads((coco_root / "coco/annotations/instances_train2017.json").read_text())
    objects = {image["id"]: [] for image in full["images"]}
    for annotation in full["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    chosen = [
        i for i, anns in objects.items() if 1 <= len(anns) <= 8 and not any(a["iscrowd"] for a in anns)
    ][:NUM_IMAGES]
    assert len(chosen) == NUM_IMAGES
    (tmp_path / "handful.json").write_text(json.dumps(of_images(full, chosen)))
    register_coco_instances(
        "coco_handful", {}, str(tmp_path / "handful.json"), str(coco_root / "coco/train2017")
    )
    return "coco_handful"


@pytest.mark.slow
def test_small_detector_fits_a_handful_of_real_coco_images(handful, tmp_path):
    cfg = engine.load_config(
        model_zoo.get_config_file("quickstart"),
        [
            *("DATASETS.TRAIN", f"('{handful}',)", "DATASETS.TEST", f"('{handful}',)"),
            *("MODEL.ROI_HEADS.NUM_CLASSES", "80", "INPUT.MIN_SIZE_TRAIN", "(144,)"),
            *("INPUT.MIN_SIZE_TEST", "144", "INPUT.RANDOM_FLIP", "none", "MODEL.MASK_ON", "False"),
            *("SOLVER.IMS_PER_BATCH", "3", "SOLVER.MAX_ITER", "300", "OUTPUT_DIR", str(tmp_path)),
        ],
    )
    engine.train(cfg)
    metrics = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    print(f"box AP on {NUM_IMAGES} training images: {metrics[-1]['bbox/AP']:.1f}")
    assert metrics[-1]["bbox/AP"] >= 50
