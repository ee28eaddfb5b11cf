"""The command lines, as a user calls them."""

import json
import re

import pytest
import torch
from support import ROOT, assert_one_line_error

from resnest_d2 import model_zoo
from resnest_d2.data.panoptic import add_panoptic_of_instances

# Small enough for seconds per run, real in every other respect.
TINY = (
    *("MODEL.RESNETS.DEPTH", 14, "MODEL.WEIGHTS", "", "SOLVER.IMS_PER_BATCH", 2),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.BOTTLENECK_WIDTH", 16),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", 96, "DATALOADER.NUM_WORKERS", 0),
    *("TEST.PRECISE_BN.NUM_ITER", 2, "SOLVER.MAX_ITER", 3, "MODEL.RPN.POST_NMS_TOPK_TEST", 30),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 60, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.FPN.OUT_CHANNELS", 64),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 64),
    # So little training finds nothing above a higher threshold.
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 20),
)
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def config(name):
    return ("--config-file", model_zoo.get_config_file(name))


def ap_tables(log: str) -> dict:
    """Task to metric to value, from the lines that detectron2 prints for copying."""
    rows = re.findall(r"copypaste: (Task: \w+|[\w,.]+)", log)
    return {
        rows[i].split()[1]: dict(zip(rows[i + 1].split(","), rows[i + 2].split(",")))
        for i in range(0, len(rows), 3)
    }


@pytest.fixture(scope="module")
def trained(few_coco, tmp_path_factory):
    """Mask R-CNN after three iterations on real COCO images: folder, environment."""
    import os
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("trained")
    environment = {**os.environ, "DETECTRON2_DATASETS": str(few_coco)}
    result = subprocess.run(
        [
            *(sys.executable, "tools/train_net.py", *config("mask_resnest50")),
            *map(str, (*TINY, "OUTPUT_DIR", folder)),
        ],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, {"DETECTRON2_DATASETS": few_coco}, result.stdout


def test_training_writes_checkpoints_metrics_and_the_config(trained):
    folder, _, log = trained
    assert {p.name for p in folder.iterdir()} >= {
        *("model_final.pth", "last_checkpoint", "metrics.json", "config.yaml", "log.txt"),
    }
    metrics = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert all(metrics[0][loss] > 0 for loss in ("total_loss", "loss_cls", "loss_mask", "loss_rpn_cls"))
    assert metrics[-1]["bbox/AP"] >= 0
    assert "No CUDA device is visible: running on the CPU" in log


def test_a_run_records_its_results_versions_and_data(trained):
    folder, env, log = trained
    run = json.loads((folder / "results.json").read_text())
    for task, table in ap_tables(log).items():
        assert {k: f"{v:.4f}" for k, v in run["results"][task].items() if "-" not in k} == table
    assert run["iterations"] == 3 and run["wall_seconds"] > 0 and run["processes"] == 1
    assert run["versions"]["torch"] == torch.__version__ and run["gpu"] is None
    assert run["datasets"][0]["image_root"] == str(env["DETECTRON2_DATASETS"] / "coco/val2017")
    assert "--config-file" in run["command"]


def test_evaluation_prints_the_coco_tables(trained):
    _, _, log = trained
    tables = ap_tables(log)
    assert set(tables) == {"bbox", "segm"}
    assert tuple(tables["bbox"]) == METRICS


def test_eval_only_on_the_checkpoint_reproduces_the_numbers_exactly(trained, run_python):
    folder, env, log = trained
    args = (*TINY, "MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", folder / "again")
    result = run_python("tools/train_net.py", *config("mask_resnest50"), "--eval-only", *args, env=env)
    assert result.returncode == 0, result.stderr[-3000:]
    assert ap_tables(result.stdout) == ap_tables(log)
    predictions = [f / "inference" / "coco_instances_results.json" for f in (folder, folder / "again")]
    assert predictions[0].read_text() == predictions[1].read_text()
    assert len(json.loads(predictions[0].read_text())) == 8 * 20
    assert (folder / "again/config.yaml").exists()


def test_an_evaluation_leaves_the_configuration_of_a_training_alone(trained, run_python, tmp_path):
    """It is what others use the weights with."""
    folder, env, _ = trained
    (tmp_path / "config.yaml").write_text("# the training's\n")
    args = (*TINY, "MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", tmp_path)
    words = ("tools/draw_predictions.py", *config("mask_resnest50"), "--num-images", 1, *args)
    result = run_python(*words, env=env)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "config.yaml").read_text() == "# the training's\n"


@pytest.mark.parametrize("flag, tolerance", [("--optimize", 1e-4), ("--half", 0.1)])
def test_evaluation_of_an_optimised_model_finds_the_same(flag, tolerance, trained, run_python, tmp_path):
    folder, env, _ = trained
    args = (*TINY, "MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", tmp_path)
    result = run_python("tools/train_net.py", *config("mask_resnest50"), "--eval-only", flag, *args, env=env)
    assert result.returncode == 0, result.stderr[-3000:]
    scores = []
    for root in (folder, tmp_path):
        found = json.loads((root / "inference/coco_instances_results.json").read_text())
        scores.append(sorted(detection["score"] for detection in found))
    assert scores[1] == pytest.approx(scores[0], abs=tolerance)
    assert scores[1] != scores[0]


def test_resume_goes_on_from_the_last_checkpoint(trained, run_python):
    folder, env, _ = trained
    more = ("OUTPUT_DIR", folder, "SOLVER.MAX_ITER", 5, "TEST.PRECISE_BN.ENABLED", False)
    result = run_python("tools/train_net.py", *config("mask_resnest50"), "--resume", *TINY, *more, env=env)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Starting training from iteration 3" in result.stdout


def test_pictures_are_drawn_beside_ground_truth(trained, run_python, tmp_path):
    from PIL import Image

    folder, env, _ = trained
    result = run_python(
        *("tools/draw_predictions.py", *config("mask_resnest50")),
        *("--num-images", 2, "--output", tmp_path / "pictures", "--score-threshold", 0.01),
        *(*TINY, "MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", tmp_path),
        env=env,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    pictures = sorted((tmp_path / "pictures").glob("*.png"))
    assert len(pictures) == 2
    assert all(Image.open(p).width == 2 * 640 for p in pictures)


@pytest.mark.slow
def test_test_time_augmentation_runs_when_enabled(trained, run_python, tmp_path):
    folder, env, _ = trained
    result = run_python(
        *("tools/train_net.py", *config("mask_resnest50"), "--eval-only"),
        *(*TINY, "MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", tmp_path),
        *("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(64, 96)"),
        env=env,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "inference_TTA" / "coco_instances_results.json").exists()
    assert len(ap_tables(result.stdout)) == 2 and result.stdout.count("Task: bbox") == 2


@pytest.mark.parametrize(
    "name, tasks",
    [
        ("retinanet_resnest50", {"bbox"}),
        pytest.param("retinanet_resnest101", {"bbox"}, marks=pytest.mark.slow),
        pytest.param("keypoint_resnest101", {"bbox", "keypoints"}, marks=pytest.mark.slow),
        pytest.param("keypoint_resnest50", {"bbox", "keypoints"}, marks=pytest.mark.slow),
        ("faster_resnest50_dcn", {"bbox"}),
        # Random crops of polygon masks.
        pytest.param("cascade_mask_resnest200_3x", {"bbox", "segm"}, marks=pytest.mark.slow),
        pytest.param("cascade_mask_resnest200_dcn_3x", {"bbox", "segm"}, marks=pytest.mark.slow),
        pytest.param(
            "panoptic_resnest200_3x", {"bbox", "segm", "sem_seg", "panoptic_seg"}, marks=pytest.mark.slow
        ),
    ],
)
def test_rows_beyond_the_two_tables_train_and_evaluate(name, tasks, few_coco, run_python, tmp_path):
    if "panoptic_seg" in tasks:
        add_panoptic_of_instances(few_coco, tmp_path / "datasets")
        few_coco = tmp_path / "datasets"
    depth = ("MODEL.RESNETS.DEPTH", 101) if name.endswith("101") else ()
    result = run_python(
        *("tools/train_net.py", *config(name), *TINY, *depth, "OUTPUT_DIR", tmp_path),
        # Grouped by aspect ratio, a batch of so few images may hold one twice. Two equal images have no variance
        # where Split-Attention's norm sees one value an image, and each untrained block then enlarges the
        # gradient by 1 / sqrt(eps) = 316.
        *("TEST.AUG.ENABLED", False, "DATALOADER.ASPECT_RATIO_GROUPING", False),
        env={"DETECTRON2_DATASETS": few_coco},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert set(ap_tables(result.stdout)) == tasks


@pytest.mark.parametrize(
    "args, expected",
    [
        ((), ["--config-file is missing"]),
        (
            ("--config-file", "configs/cascade_resnest102.yaml"),
            ["there is no file /", "did you mean", "resnest101"],
        ),
        (
            (*config("quickstart"), "SOLVER.BASE_LT", 1),
            ["unknown key SOLVER.BASE_LT; did you mean SOLVER.BASE_LR"],
        ),
        ((*config("quickstart"), "SOLVER.BASE_LR"), ["KEY VALUE pairs expected"]),
        ((*config("quickstart"), "SOLVER.BASE_LR", "fast"), ["command line: ", "SOLVER.BASE_LR"]),
        (
            (*config("quickstart"), "DATASETS.TRAIN", "('shape_train',)"),
            ["'shape_train'; did you mean shapes_train"],
        ),
        (
            (*config("cascade_resnest50"),),
            ["DATASETS.TRAIN: files of 'coco_2017_train' are missing", "/nowhere/"],
        ),
        ((*config("quickstart"), "MODEL.WEIGHTS", "no.pth"), ["MODEL.WEIGHTS: there is no file /", "no.pth"]),
        ((*config("quickstart"), "--eval-only"), ['MODEL.WEIGHTS is ""', "--eval-only"]),
        ((*config("quickstart"), "MODEL.DEVICE", "cuda"), ["MODEL.DEVICE cuda: no CUDA device is visible"]),
        ((*config("quickstart"), "--optimize"), ["--optimize and --half are for --eval-only"]),
        ((*config("quickstart"), "--num-gpus", "64"), ["--num-gpus 64: ", " visible on this machine"]),
        (
            (*config("quickstart"), "MODEL.RESNETS.RADIX", -1),
            ["MODEL.RESNETS.RADIX must be a whole number >= 0, got -1"],
        ),
        (
            (*config("quickstart"), "SOLVER.OPTIMIZER", "ADAM"),
            ["SOLVER.OPTIMIZER must be SGD or ADAMW, got 'ADAM'"],
        ),
    ],
    ids=lambda value: " ".join(map(str, value))[-60:],
)
def test_mistakes_end_in_one_line_and_status_2(args, expected, run_python, tmp_path):
    # --num-gpus and KEY VALUE pairs are told apart by order: flags come first.
    flags = [a for a in args if str(a).startswith("--") or str(a).endswith(".yaml") or a in ("64", "3")]
    pairs = [a for a in args if a not in flags]
    result = run_python(
        ROOT / "tools/train_net.py",
        *flags,
        *(*pairs, *([] if len(pairs) % 2 else ["OUTPUT_DIR", tmp_path / "output"])),
        env={"DETECTRON2_DATASETS": "/nowhere", "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
    )
    assert_one_line_error(result, *expected)


def test_crops_of_polygons_without_shapely_are_named(run_python, coco_root, tmp_path):
    (tmp_path / "without.py").write_text(
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'shapely' else find(name, *a)\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    result = run_python(
        *(tmp_path / "without.py", "tools/train_net.py", *config("cascade_mask_resnest200_3x")),
        *("MODEL.WEIGHTS", "", "OUTPUT_DIR", tmp_path),
        env={"DETECTRON2_DATASETS": coco_root},
    )
    assert_one_line_error(result, "INPUT.CROP.ENABLED True", "pip install shapely")


def test_malformed_yaml_is_named_in_one_line(run_python, tmp_path):
    (tmp_path / "bad.yaml").write_text("MODEL: [1, 2\nX: 3")
    result = run_python("tools/train_net.py", "--config-file", tmp_path / "bad.yaml")
    assert_one_line_error(result, f"{tmp_path}/bad.yaml: ")


@pytest.mark.parametrize("tool", ["train_net.py", "draw_predictions.py"])
def test_help_explains_the_tool(tool, run_python):
    result = run_python(f"tools/{tool}", "--help")
    assert result.returncode == 0
    for text in ("--config-file", "--num-gpus", "--resume", "DETECTRON2_DATASETS", f"{tool} --"):
        assert text in result.stdout


def test_tools_are_thin():
    tools = [*(ROOT / "tools").glob("*.py")]
    assert len(tools) > 5
    for tool in tools:
        assert len(tool.read_text().splitlines()) < 100
