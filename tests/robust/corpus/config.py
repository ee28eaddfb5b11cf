"""Configurations with wrong types, unknown keys and names, and values that cannot work."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
from PIL import Image

from .. import tiny
from .case import Case
from .images import plain_dataset, train

CONFIG: Dict[str, Callable[[Path, np.random.Generator], Case]] = {}


def _case(settings: Sequence[object], expected: Dict, folder: Path, rng: np.random.Generator) -> Case:
    case = train(folder, plain_dataset(folder), **expected)
    return case._replace(words=[*case.words, *settings])


def _refused(
    key: str, value: object, *texts: str, also: Sequence[object] = (), mention: Optional[str] = None
) -> None:
    # The line must name the key, unless what is wrong is seen by detectron2 only.
    named = mention if mention is not None else key.split(".")[-1]
    CONFIG[f"{key} {value}"] = partial(_case, [*also, key, value], {"refused": (named, *texts)})


def _works(key: str, value: object, *also: object) -> None:
    CONFIG[f"{key} {value} works"] = partial(_case, [*also, key, value], {"refused": None, "works": True})


for key in (
    *("SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.MOMENTUM", "MODEL.RESNETS.DEPTH"),
    *("MODEL.RESNETS.RADIX", "MODEL.RESNETS.AVD", "INPUT.MAX_SIZE_TRAIN", "DATALOADER.NUM_WORKERS"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.BACKBONE.FREEZE_AT", "TEST.EVAL_PERIOD", "SEED"),
):
    for value in ("word", "[1, 2]", "{'a': 1}"):
        _refused(key, value)
for key, near in (
    ("SOLVER.BASE_LT", "SOLVER.BASE_LR"),
    ("MODEL.RESNETS.RADIUS", "MODEL.RESNETS.RADIX"),
    ("MODEL.RESNET.DEPTH", "MODEL.RESNETS.DEPTH"),
    ("INPUT.MIN_SIZE", "INPUT.MIN_SIZE"),
    ("TEST.EVAL_PERIODS", "TEST.EVAL_PERIOD"),
    ("output_dir", "OUTPUT_DIR"),
):
    _refused(key, 1, near, mention=key.split(".")[0])
for key, value, near in (
    ("MODEL.META_ARCHITECTURE", "GeneralisedRCNN", "GeneralizedRCNN"),
    ("MODEL.BACKBONE.NAME", "build_resnest_fpn", "build_resnest_fpn_backbone"),
    ("MODEL.PROPOSAL_GENERATOR.NAME", "RPM", "RPN"),
    ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerater", "DefaultAnchorGenerator"),
    ("MODEL.ROI_HEADS.NAME", "StandardROIHead", "StandardROIHeads"),
    ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFC", "FastRCNNConvFCHead"),
    ("MODEL.RPN.HEAD_NAME", "StandardRPN", "StandardRPNHead"),
    ("MODEL.RESNETS.NORM", "SyncBatchNorm", "SyncBN"),
    ("MODEL.FPN.NORM", "GroupNorm", "GN"),
    ("MODEL.ROI_BOX_HEAD.NORM", "bn", "BN"),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAling", "ROIAlign"),
    ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosine", "WarmupCosineLR"),
    ("SOLVER.OPTIMIZER", "ADAM", "ADAMW"),
    ("DATALOADER.SAMPLER_TRAIN", "Training", "TrainingSampler"),
    ("INPUT.FORMAT", "RBG", "RGB"),
    ("INPUT.RANDOM_FLIP", "horizontally", "horizontal"),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choise", "choice"),
):
    _refused(key, value, near)
for key, value in (
    ("MODEL.RESNETS.RADIX", -1),
    ("MODEL.RESNETS.NUM_GROUPS", 3),
    ("MODEL.RESNETS.NUM_GROUPS", 0),
    ("MODEL.RESNETS.DEPTH", 51),
    ("MODEL.RESNETS.BOTTLENECK_WIDTH", 0),
    ("MODEL.RESNETS.RES5_DILATION", 3),
    ("MODEL.RESNETS.OUT_FEATURES", "['res9']"),
    ("SOLVER.IMS_PER_BATCH", 0),
    ("SOLVER.IMS_PER_BATCH", -4),
    ("SOLVER.IMS_PER_BATCH", 1),
    ("SOLVER.MAX_ITER", 0),
    ("SOLVER.MAX_ITER", -3),
    ("SOLVER.BASE_LR", 0),
    ("SOLVER.BASE_LR", -0.1),
    ("SOLVER.BASE_LR", "float('nan')"),
    ("SOLVER.CHECKPOINT_PERIOD", 0),
    ("SOLVER.STEPS", "(5, 1)"),
    ("SOLVER.STEPS", "(2,)"),
    ("DATALOADER.NUM_WORKERS", -1),
    ("INPUT.MIN_SIZE_TRAIN", "()"),
    ("INPUT.MIN_SIZE_TRAIN", "(0,)"),
    ("INPUT.MAX_SIZE_TRAIN", 0),
    ("MODEL.PIXEL_MEAN", "[1.0, 2.0]"),
    ("MODEL.PIXEL_STD", "[0.0, 0.0, 0.0]"),
    ("MODEL.DEVICE", "gpu"),
    ("MODEL.DEVICE", "cuda"),
    ("MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.5, 0.6]"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64]]"),
    ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 0),
    ("MODEL.BACKBONE.FREEZE_AT", -1),
    ("TEST.DETECTIONS_PER_IMAGE", 0),
    ("SOLVER.REFERENCE_WORLD_SIZE", 3),
    ("OUTPUT_DIR", "/proc/nowhere"),
    ("OUTPUT_DIR", "/dev/null/x"),
    ("MODEL.RPN.IN_FEATURES", "['p9']"),
):
    _refused(key, value)
_refused("MODEL.MASK_ON", True)  # boxes only are annotated
_refused("MODEL.KEYPOINT_ON", True)
for key, value in (
    ("SOLVER.AMP.ENABLED", True),
    ("MODEL.RESNETS.RADIX", 1),
    ("MODEL.RESNETS.RADIX", 0),
    ("MODEL.RESNETS.NORM", "FrozenBN"),
    ("MODEL.RESNETS.NORM", "GN"),
    ("MODEL.RESNETS.NORM", "SyncBN"),
    ("INPUT.FORMAT", "RGB"),
    ("SOLVER.CLIP_GRADIENTS.ENABLED", True),
    ("SOLVER.OPTIMIZER", "SGD"),
    ("TEST.AVERAGE_RECALL", True),
    ("SEED", -1),
):
    # GroupNorm needs 32 channels to divide.
    _works(
        key,
        value,
        *(
            ("MODEL.RESNETS.RES2_OUT_CHANNELS", 256, "MODEL.RESNETS.BOTTLENECK_WIDTH", 64)
            if value == "GN"
            else ()
        ),
    )
CONFIG["FrozenBN with batch 1 works"] = partial(
    _case,
    ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "", "SOLVER.IMS_PER_BATCH", 1],
    {"refused": None, "works": True},
)


def _alone(key: str, value: object, folder: Path, rng: np.random.Generator) -> Case:
    words = ["train_net.py", "--config-file", tiny.ROOT / "configs/quickstart.yaml", key, value]
    return Case(words, refused=(key,))


for key, values in (
    ("SOLVER.GAMMA", (0, -0.1, "float('nan')", "1e400")),
    ("SOLVER.MOMENTUM", (-0.1, 1.5, "1e400")),
    ("SOLVER.WEIGHT_DECAY", (-1.0, "1e400")),
    ("SOLVER.WEIGHT_DECAY_BIAS", (-1.0, "word", "[1.0]")),
    ("SOLVER.WEIGHT_DECAY_NORM", (-1.0,)),
    ("SOLVER.BASE_LR", ("1e400", "None")),
    ("SOLVER.BASE_LR_END", (-0.1,)),
    ("SOLVER.WARMUP_ITERS", (-1,)),
    ("SOLVER.WARMUP_FACTOR", (-0.5, 2.0, "1e400")),
    ("SOLVER.WARMUP_METHOD", ("lineer",)),
    ("SOLVER.MAX_ITER", (10**30, "1e400")),
    ("SOLVER.IMS_PER_BATCH", (10**9,)),
    ("SOLVER.STEPS", ("(-5, 3)", "(0,)", "('5',)", "(1.5,)")),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", (0.0, -1.0, "1e400")),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", ("norms",)),
    ("SOLVER.REFERENCE_WORLD_SIZE", (-2,)),
    ("SEED", (2**32, 2**64, 10**400)),
    ("MODEL.RPN.NMS_THRESH", (-0.1, 1.5)),
    ("MODEL.RPN.POST_NMS_TOPK_TRAIN", (0, -1)),
    ("MODEL.RPN.PRE_NMS_TOPK_TEST", (0,)),
    ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", (0, -256)),
    ("MODEL.RPN.POSITIVE_FRACTION", (-0.5, 1.5)),
    ("MODEL.RPN.CONV_DIMS", ("[0]", "[]", "[-2]", "[1e9]")),
    ("MODEL.RPN.IN_FEATURES", ("[]", "[2]")),
    ("MODEL.RPN.IOU_THRESHOLDS", ("[]", "[0.3, 7.0]")),
    ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", (-1.0, 2.0)),
    ("MODEL.ROI_HEADS.NMS_THRESH_TEST", ("1e400",)),
    ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", (0,)),
    ("MODEL.ROI_HEADS.IN_FEATURES", ("[]",)),
    ("MODEL.ROI_BOX_HEAD.NUM_CONV", (-1, 10**6)),
    ("MODEL.ROI_BOX_HEAD.NUM_FC", (-1,)),
    ("MODEL.ROI_BOX_HEAD.FC_DIM", (0, -3, 2 * 10**9)),
    ("MODEL.ROI_BOX_HEAD.CONV_DIM", (0,)),
    ("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", (-1.0,)),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", ("(1.0, 1.0)", "(0.0, 1.0, 1.0, 1.0)")),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", ("smooth_l2",)),
    ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", (-1, 10**6)),
    ("MODEL.RETINANET.NUM_CONVS", (-1,)),
    ("MODEL.RETINANET.PRIOR_PROB", (0.0, 1.0)),
    ("MODEL.FPN.OUT_CHANNELS", (0, 10**9)),
    ("MODEL.FPN.FUSE_TYPE", ("som",)),
    ("MODEL.ANCHOR_GENERATOR.SIZES", ("[]", "[[]]", "[32, 64]", "[['32']]", "[[-32]]", "None")),
    ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ("[]", "[[0.0]]", "[[]]")),
    ("MODEL.PIXEL_STD", ("[1.0]", "['a', 'b', 'c']")),
    ("MODEL.RESNETS.RADIX", (3, "None")),
    ("MODEL.DEVICE", ("", "cuda:99", "meta", "None", "mps")),
    ("INPUT.MIN_SIZE_TRAIN", ("('64',)", "(64.5,)", "(True,)", "((64,),)", "None", "(1000000,)")),
    ("INPUT.MIN_SIZE_TEST", (-1, 10**9)),
    ("INPUT.MAX_SIZE_TEST", (-1,)),
    ("INPUT.CROP.SIZE", ("[0.9]", "[2.0, 2.0]", "[0.0, 0.5]")),
    ("TEST.AUG.MIN_SIZES", ("()", "(-4,)")),
    ("TEST.AUG.MAX_SIZE", (0,)),
    ("TEST.PRECISE_BN.NUM_ITER", (-1, 0)),
    ("TEST.EXPECTED_RESULTS", ("['bbox']", "[['bbox', 'AP', 'high', 0.1]]", "[[1, 2, 3, 4]]")),
    ("DATASETS.TEST", ("(3,)", "None")),
    ("DATALOADER.NUM_WORKERS", (10**6,)),
    ("OUTPUT_DIR", ("", "None", "s3://bucket/run")),
):
    for value in values:
        CONFIG[f"{key} {str(value)[:40]} alone"] = partial(_alone, key, value)


def _file(content: Optional[bytes], expected: Sequence[str], folder: Path, rng: np.random.Generator) -> Case:
    if content is not None:
        (folder / "bad.yaml").write_bytes(content)
    return Case(["train_net.py", "--config-file", folder / "bad.yaml"], refused=expected)


def _bomb(reference: str) -> bytes:
    """Nine lists of nine references to the one before."""
    lines = ["L0: &a0 {X: 1}" if reference == "merge" else "L0: &a0 [x]"]
    for i in range(1, 10):
        entries = ", ".join([f"*a{i - 1}"] * 9)
        lines.append(
            f"L{i}: &a{i} {{<<: [{entries}]}}" if reference == "merge" else f"L{i}: &a{i} [{entries}]"
        )
    return "\n".join(lines).encode()


for title, content in (
    ("empty key", b"MODEL:\n  RESNETS:\n    : 3\n"),
    ("unbalanced", b"MODEL: [1, 2\nX: 3"),
    ("tabs", b"MODEL:\n\tDEPTH: 3\n"),
    ("a list", b"- 1\n- 2\n"),
    ("a word", b"hello\n"),
    ("binary", bytes(range(256))),
    ("unknown section", b"MODLE:\n  DEPTH: 3\n"),
    ("wrong type", b"SOLVER:\n  BASE_LR: [fast]\n"),
    ("base that is not there", b"_BASE_: none.yaml\n"),
    ("base that is itself", b"_BASE_: bad.yaml\n"),
    ("python object", b"MODEL: !!python/object/apply:os.system ['true']\n"),
    ("section as a value", b"MODEL: 3\n"),
    ("not there", None),
    ("empty", b""),
    ("flow nested deep", b"MODEL: " + b"[" * 100_000),
    ("blocks nested deep", b"\n".join(b" " * i + b"A:" for i in range(1000))),
    ("lists nested deep", b"A: " + b"- " * 5000),
    ("nested deep behind a quote in a comment", b'# "\nA: ' + b"[" * 5000 + b'\n# "'),
    ("aliases by the billion", _bomb("list")),
    ("merges by the billion", _bomb("merge")),
    ("an alias of itself", b"A: &a [*a]"),
    ("a key twice", b"SOLVER:\n  MAX_ITER: 3\n  BASE_LR: 0.1\n  MAX_ITER: 4\n"),
    ("a section twice", b"SOLVER: {MAX_ITER: 3}\nSOLVER: {MAX_ITER: 4}\n"),
    ("a number as a key", b"MODEL: {3: 4}"),
    ("a list as a key", b"? [a, b]\n: 3\n"),
    ("two documents", b"SEED: 1\n---\nSEED: 2\n"),
    ("a date", b"SEED: 2001-01-01\n"),
    ("a date that is none", b"SEED: 2001-99-99\n"),
    ("a number of 5000 digits", b"SEED: " + b"9" * 5000),
    ("a null byte", b"SEED: 1\0\n"),
    ("UTF-16", "SEED: 1\n".encode("utf-16")),
    ("UTF-32", "SEED: 1\n".encode("utf-32")),
    ("Latin-1", "# größer\nSEED: 1\n".encode("latin-1")),
    ("base that is a number", b"_BASE_: 3\n"),
    ("base that is nothing", b"_BASE_:\n"),
    ("bases of which one is a number", b"_BASE_: [3]\n"),
    ("base that is a folder", b"_BASE_: .\n"),
    ("base by a URL", b"_BASE_: http://127.0.0.1/a.yaml\n"),
    ("base in a bucket", b"_BASE_: s3://bucket/a.yaml\n"),
    ("the same base without an end", b"_BASE_: [bad.yaml, bad.yaml]\n"),
    ("too large", b"#" * (2 << 20)),
):
    CONFIG[f"YAML: {title}"] = partial(
        _file, content, ("bad.yaml",) if title != "base that is not there" else ("none.yaml",)
    )


def _words(words: Sequence[object], expected: Sequence[str], folder: Path, rng: np.random.Generator) -> Case:
    return Case(["train_net.py", *words], refused=expected)


_CONFIG_FILE = ("--config-file", tiny.ROOT / "configs/quickstart.yaml")
for title, words, expected in (
    ("no config file", (), ("--config-file",)),
    ("no classes", (*_CONFIG_FILE, "MODEL.ROI_HEADS.NUM_CLASSES", 0), ("NUM_CLASSES must be >= 1",)),
    ("unknown data", (*_CONFIG_FILE, "DATASETS.TRAIN", "('shape_train',)"), ("did you mean shapes_train",)),
    ("no data", (*_CONFIG_FILE, "DATASETS.TRAIN", "()"), ("DATASETS.TRAIN",)),
    ("key without a value", (*_CONFIG_FILE, "SOLVER.BASE_LR"), ("KEY VALUE",)),
    ("epochs without data", (*_CONFIG_FILE, "--epochs", "3"), ("--epochs",)),
    ("json without images", (*_CONFIG_FILE, "--train-json", "a.json"), ("--train-json", "pairs")),
    ("evaluation without weights", (*_CONFIG_FILE, "--eval-only"), ("MODEL.WEIGHTS",)),
    ("more GPUs than there are", (*_CONFIG_FILE, "--num-gpus", "64"), ("--num-gpus 64",)),
    (
        "COCO that is not there",
        ("--config-file", tiny.ROOT / "configs/mask_resnest50.yaml"),
        ("coco_2017_train",),
    ),
):
    CONFIG[f"command: {title}"] = partial(_words, words, expected)


def _large_file(folder: Path, rng: np.random.Generator) -> Case:
    with (folder / "bad.yaml").open("wb") as file:
        file.truncate(2 << 30)
    return Case(["train_net.py", "--config-file", folder / "bad.yaml"], refused=("bad.yaml", "bytes"))


def _loop_of_bases(folder: Path, rng: np.random.Generator) -> Case:
    for name, other in (("a", "b"), ("b", "a")):
        (folder / f"{name}.yaml").write_text(f"_BASE_: {other}.yaml\n")
    return Case(["train_net.py", "--config-file", folder / "a.yaml"], refused=("_BASE_", "leads back to"))


def _tree_of_bases(folder: Path, rng: np.random.Generator) -> Case:
    for i in range(30):
        (folder / f"{i}.yaml").write_text(f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]\n")
    (folder / "30.yaml").write_text("SEED: 1\n")
    return Case(["train_net.py", "--config-file", folder / "0.yaml"], refused=("more than 100 files",))


def _written(encode: Callable[[str], bytes], folder: Path, rng: np.random.Generator) -> Case:
    case = train(folder, plain_dataset(folder), refused=None, works=True)
    (folder / "größe.yaml").write_bytes(
        encode(f"# für\n_BASE_: {tiny.ROOT}/configs/quickstart.yaml\nSEED: 3\n")
    )
    words = list(case.words)
    words[words.index("--config-file") + 1] = folder / "größe.yaml"
    return case._replace(words=words)


CONFIG["YAML: 2 GB"] = _large_file
CONFIG["YAML: two bases that lead to each other"] = _loop_of_bases
CONFIG["YAML: bases in a tree of 2 ** 30"] = _tree_of_bases
CONFIG["YAML: CRLF works"] = partial(_written, lambda text: text.replace("\n", "\r\n").encode())
CONFIG["YAML: byte-order mark works"] = partial(_written, lambda text: text.encode("utf-8-sig"))


def _annotated(folder: Path, change: Callable[[Dict[str, Any]], None]) -> List[str]:
    """Two images with an object each, which has a mask and two keypoints, in a file for each split."""
    (folder / "images").mkdir()
    for i in (1, 2):
        Image.new("RGB", (64, 48), (80 * i, 60, 90)).save(folder / f"images/{i}.jpg")
    content: Dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in (1, 2)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 36, 36], "area": 1296, "iscrowd": 0,
             "segmentation": [[4, 4, 40, 4, 40, 40, 4, 40]], "keypoints": [9, 9, 2, 30, 30, 2], "num_keypoints": 2}
            for i in (1, 2)
        ],
        "categories": [{"id": 1, "name": "a", "keypoints": ["left", "right"], "skeleton": []}],
    }  # fmt: skip
    change(content)
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))
    return tiny.own_data(*((folder / f"{split}.json", folder / "images") for split in ("train", "val")))


def _evaluation(
    config: str, change: Callable, settings: Sequence[object], expected: Dict, folder: Path, rng: object
) -> Case:
    """What only an evaluation shows, which is found before training."""
    data = _annotated(folder, change)
    words = tiny.command(data, folder / "output", 2, "TEST.PRECISE_BN.ENABLED", False, *settings)
    words[words.index("--config-file") + 1] = str(tiny.ROOT / f"configs/{config}.yaml")
    return Case(["train_net.py", *words[1:], "MODEL.WEIGHTS", ""], **expected)


def _nothing(content: Dict) -> None:
    pass


def _float_sizes(content: Dict) -> None:
    for image in content["images"]:
        image["width"] = float(image["width"])


def _one_class_of_two(content: Dict) -> None:
    content["categories"].append({"id": 2, "name": "b"})
    without = {"id": 2, "image_id": 2, "category_id": 2, "bbox": [4, 4, 9, 9], "area": 81, "iscrowd": 0}
    content["annotations"][1] = without


def _uncounted(content: Dict) -> None:
    for annotation in content["annotations"]:
        del annotation["num_keypoints"]


_KEYPOINTS = ("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)", "MODEL.ROI_BOX_HEAD.NUM_CONV", 1)
_AUGMENTED = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(64,)")
# Refused, or completed before they are evaluated.
_EITHER = {"refused": (".json",), "works": True}
for title, config, change, settings, expected in (
    ("augmentation of RetinaNet", "retinanet_resnest50", _nothing, _AUGMENTED, {"refused": ("TEST.AUG.ENABLED",)}),
    (
        "augmentation of keypoints", "keypoint_resnest50", _nothing, (*_KEYPOINTS, *_AUGMENTED),
        {"refused": ("TEST.AUG.ENABLED",)},
    ),
    ("sizes that are no whole numbers", "quickstart", _float_sizes, ("MODEL.MASK_ON", True), _EITHER),
    ("keypoints of one class of two", "keypoint_resnest50", _one_class_of_two, _KEYPOINTS, _EITHER),
    ("keypoints that are not counted", "keypoint_resnest50", _uncounted, _KEYPOINTS, _EITHER),
    (
        "constants of other keypoints", "keypoint_resnest50", _nothing,
        (*_KEYPOINTS, "TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 0.1, 0.1]"), {"refused": ("TEST.KEYPOINT_OKS_SIGMAS",)},
    ),
):  # fmt: skip
    CONFIG[f"evaluation: {title}"] = partial(_evaluation, config, change, settings, expected)
