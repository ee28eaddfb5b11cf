"""Exported files: they compute what the model does, at any size, and say what they are."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image
from robust import tiny
from support import ROOT, assert_one_line_error
from torch import nn

from resnest_d2 import UserError, export, model_zoo
from resnest_d2.engine import load_config
from resnest_d2.export.boxes import suppress, top, with_dummies
from resnest_d2.export.formats import KEY
from resnest_d2.export.graphs import RCNNGraph
from resnest_d2.export.verify import CERTAIN, Comparison, compare_objects
from resnest_d2.prediction import Predictor
from resnest_d2.processes import Interrupted

WIDE = ("MODEL.RPN.POST_NMS_TOPK_TEST", 100, "TEST.DETECTIONS_PER_IMAGE", 50)
DETECTOR = (*tiny.SETTINGS, *WIDE, "MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.WEIGHTS", "")
NORMS = [f"MODEL.{part}.NORM" for part in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")]
#: GroupNorm has 32 groups, and torch refuses groups of one channel on a map of one pixel.
WIDER = (
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 128, "MODEL.RESNETS.BOTTLENECK_WIDTH", 64),
    *("MODEL.FPN.OUT_CHANNELS", 64, "MODEL.ROI_BOX_HEAD.CONV_DIM", 64),
)
#: Name of a recipe, and settings that make it small, by family of models.
FAMILIES = {
    "mask": ("quickstart", (*DETECTOR, "MODEL.MASK_ON", True)),
    "cascade": ("cascade_mask_resnest50", (*DETECTOR, "MODEL.MASK_ON", True)),
    "deformable": ("faster_resnest50_dcn", DETECTOR),
    "group norm": ("quickstart", (*DETECTOR, *WIDER, *(word for key in NORMS for word in (key, "GN")))),
    "retinanet": ("retinanet_resnest50", (*DETECTOR, "MODEL.RETINANET.NUM_CLASSES", 5)),
    "segmentation": ("segmentation/deeplabv3_resnest14_small", tiny.SEGMENTATION),
    "decoder": (
        "segmentation/deeplabv3plus_resnest50_ade20k",
        (*tiny.SEGMENTATION, "MODEL.RESNETS.DEPTH", 14, "MODEL.WEIGHTS", ""),
    ),
    "classifier": ("classification/resnest14_small", tiny.CLASSIFICATION),
}
SIZES = ((64, 96), (96, 65), (131, 77))


def make_predictor(family, *more):
    name, settings = FAMILIES[family]
    words = [*settings, "MODEL.DEVICE", "cpu", *more]
    cfg = load_config(model_zoo.get_config_file(name), [*map(str, words)])
    torch.manual_seed(0)
    predictor = Predictor(cfg, allow_random=True)
    decide(predictor.model)
    return predictor


def decide(model):
    """Give random weights what a trained network has: norms that matter, sure scores, boxes that move."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.1)
    for name, parameter in model.named_parameters():
        if "cls_score.weight" in name or "objectness_logits.weight" in name:
            # Not so sure that sigmoids are 1 and objects have no order.
            nn.init.normal_(parameter, std=0.4 if name.startswith("head.") else 3)
        elif "_subnet." in name and parameter.dim() == 4:  # RetinaNet's towers start close to 0
            nn.init.kaiming_normal_(parameter)
        elif "bbox_pred.weight" in name or "anchor_deltas.weight" in name:
            nn.init.normal_(parameter, std=0.1)


def images(count=3):
    """Images of different sizes, as a model sees them."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (3, *SIZES[i % len(SIZES)]), dtype=np.uint8) for i in range(count)]
    return [(f"{i}.png", torch.from_numpy(image)) for i, image in enumerate(pixels)]


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for i, (_, image) in enumerate(images()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"photos/{i}.png")
    return tmp_path / "photos"


def differences(predictor, file):
    """All comparisons; those of a detector have objects, and some are certain."""
    exported = export.ExportedModel(file)
    rows = [*export.compare(predictor.model, exported, images())]
    # Scaled by 1, 0.8, 0.6, and the ramp of greys.
    assert [row.size for row in rows] == [(64, 96), (77, 52), (79, 46), (64, 96)]
    if exported.description["task"] == "detection" and exported.description["part"] == "detector":
        assert min(row.objects for row in rows) > 0
        (found,) = predictor.model([{"image": images()[0][1]}])
        assert (found["instances"].scores >= CERTAIN).any()
    return rows


@pytest.fixture(scope="module")
def detector():
    return make_predictor("mask")


@pytest.fixture(scope="module")
def classifier():
    return make_predictor("classifier")


def as_onnx(name):
    """A fixture: the file of the model that another fixture makes."""

    @pytest.fixture(scope="module")
    def written(request, tmp_path_factory):
        file = tmp_path_factory.mktemp("onnx") / "model.onnx"
        export.export(request.getfixturevalue(name), file)
        return file

    return written


onnx_detector, onnx_classifier = as_onnx("detector"), as_onnx("classifier")


@pytest.mark.parametrize("family", FAMILIES)
def test_torchscript_computes_what_the_model_does_at_any_size(family, tmp_path):
    predictor = make_predictor(family)
    export.export(predictor, tmp_path / "model.ts")
    export.check(differences(predictor, tmp_path / "model.ts"), export.EXACT, "model.ts")


def slow_but(fast):
    """Parametrised by all families, of which one is not slow."""
    families = [pytest.param(f, marks=[] if f == fast else pytest.mark.slow) for f in FAMILIES]
    return pytest.mark.parametrize("family", families)


def test_onnx_computes_what_the_model_does_at_any_size(classifier, onnx_classifier):
    export.check(differences(classifier, onnx_classifier), export.EXACT, "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_of_each_family_computes_what_the_model_does(family, tmp_path):
    predictor = make_predictor(family)
    export.export(predictor, tmp_path / "model.onnx")
    export.check(differences(predictor, tmp_path / "model.onnx"), export.EXACT, "model.onnx")


@slow_but("segmentation")
def test_pt2_computes_what_the_model_does_at_any_size(family, tmp_path):
    predictor = make_predictor(family)
    export.export(predictor, tmp_path / "model.pt2")
    export.check(differences(predictor, tmp_path / "model.pt2"), export.EXACT, "model.pt2")


@pytest.mark.parametrize(
    "extension", [".ts", *(pytest.param(name, marks=pytest.mark.slow) for name in (".onnx", ".pt2"))]
)
def test_a_backbone_alone_has_the_models_features(extension, detector, tmp_path):
    export.export(detector, tmp_path / f"backbone{extension}", backbone=True)
    exported = export.ExportedModel(tmp_path / f"backbone{extension}")
    assert exported.description["outputs"] == ["p2", "p3", "p4", "p5", "p6"]
    rows = [*export.compare(detector.model, exported, images())]
    assert all(row.errors["feature"] < export.EXACT["feature"] for row in rows)
    sizes = {name: value.shape[2:] for name, value in exported.run(images()[0][1]).items()}
    assert sizes["p2"] == (16, 24) and sizes["p6"] == (1, 2)


@pytest.mark.parametrize("extension", [".ts", pytest.param(".onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["mask", "cascade", "retinanet"])
def test_an_image_without_objects_has_none_in_the_file(family, extension, tmp_path):
    key = "RETINANET" if family == "retinanet" else "ROI_HEADS"
    predictor = make_predictor(family, f"MODEL.{key}.SCORE_THRESH_TEST", 1.0)
    export.export(predictor, tmp_path / f"model{extension}")
    exported = export.ExportedModel(tmp_path / f"model{extension}")
    for _, image in images():
        outputs = exported.run(image)
        assert {len(value) for value in outputs.values()} == {0}
        (found,) = exported([{"image": image}])
        assert len(found["instances"]) == 0


def test_folding_and_recording_leave_the_model_alone(detector, tmp_path):
    record = [{"image": images()[0][1]}]
    before = detector.model(record)[0]["instances"].scores
    export.export(detector, tmp_path / "model.ts")
    assert torch.equal(before, detector.model(record)[0]["instances"].scores)


def test_suppression_equals_torchvisions_by_group():
    rng = torch.Generator().manual_seed(0)
    corners = 100 * torch.rand(300, 2, generator=rng)
    boxes = torch.cat([corners, corners + 40 * torch.rand(300, 2, generator=rng)], 1) - 20
    scores, groups = torch.rand(300, generator=rng), torch.randint(7, (300,), generator=rng)
    padded = nn.functional.pad(scores, (2, 0)), nn.functional.pad(groups, (2, 0))
    kept = suppress(with_dummies(boxes), *padded, 7, 0.3, 1000)
    from torchvision.ops import batched_nms

    assert kept[:2].tolist() == [0, 1]
    assert (kept[2:] - 2).tolist() == batched_nms(boxes, scores, groups, 0.3).tolist()
    assert suppress(with_dummies(boxes), *padded, 7, 0.3, 5).tolist() == kept[:7].tolist()


def test_top_of_too_few_scores_fills_up_with_minus_infinity():
    scores, index = top(torch.tensor([0.1, 0.7]), 4)
    assert scores.tolist()[:2] == pytest.approx([0.7, 0.1]) and index.tolist()[:2] == [1, 0]
    assert scores[2:].isinf().all() and index.max() <= 1


def objects(boxes, scores, classes):
    found = Instances((100, 100))
    found.pred_boxes, found.scores = Boxes(torch.tensor(boxes, dtype=torch.float32)), torch.tensor(scores)
    found.pred_classes = torch.tensor(classes)
    return found


def test_objects_are_compared_whatever_their_order():
    one = objects([[0, 0, 10, 10], [20, 20, 40, 40]], [0.9, 0.8], [0, 1])
    other = objects([[20, 20, 40, 41], [0, 0, 10, 10]], [0.81, 0.9], [1, 0])
    errors = compare_objects(one, other)
    assert errors["missing"] == 0 and errors["box"] == 1 and errors["score"] == pytest.approx(0.01)


def test_what_is_not_a_number_is_no_agreement():
    row = Comparison("a.png", (8, 8), None, {"score": float("nan")})
    with pytest.raises(UserError, match=r"model\.ts differs from the model: score nan in a\.png"):
        export.check([Comparison("b.png", (8, 8), None, {"score": 0.0}), row], export.EXACT, "model.ts")


def test_objects_that_nothing_matches_are_missing_however_uncertain():
    many = objects([[i, 0, i + 1, 10] for i in range(5)], [0.1] * 5, [0] * 5)
    assert compare_objects(many, many[:0])["missing"] == compare_objects(many[:0], many)["missing"] == 1
    assert compare_objects(many[:1], many[:0])["missing"] == compare_objects(many, many)["missing"] == 0


@pytest.mark.parametrize("family", ["mask", "retinanet"])
def test_any_number_of_objects_may_be_found(family, tmp_path):
    predictor = make_predictor(family, "TEST.DETECTIONS_PER_IMAGE", -1)
    export.export(predictor, tmp_path / "model.ts")
    rows = differences(predictor, tmp_path / "model.ts")
    export.check(rows, export.EXACT, "model.ts")
    assert max(row.objects for row in rows) > 50


def test_boxes_lie_in_the_image(tmp_path):
    predictor = make_predictor("retinanet")
    export.export(predictor, tmp_path / "model.ts")
    boxes = export.ExportedModel(tmp_path / "model.ts").run(images()[0][1])["boxes"]
    assert len(boxes) and boxes.min() >= 0 and (boxes <= torch.tensor([96, 64, 96, 64])).all()


def test_a_link_is_kept_and_its_target_replaced(run_python, photos, tmp_path):
    (tmp_path / "real.ts").write_text("an earlier one")
    (tmp_path / "link.ts").symlink_to(tmp_path / "real.ts")
    words = ("--allow-random-weights", "--format", "torchscript", "--verify", photos, "--overwrite")
    done = tool(run_python, tmp_path, *words, "--output", tmp_path / "link.ts")
    assert done.returncode == 0, done.stderr
    (tmp_path / "other.ts").symlink_to(tmp_path / "real.bin")
    refused = tool(run_python, tmp_path, *words, "--output", tmp_path / "other.ts")
    assert_one_line_error(refused, "other.ts must end in .ts")
    assert (tmp_path / "link.ts").is_symlink() and (tmp_path / "real.ts").read_bytes()[:2] == b"PK"


def test_an_image_that_a_file_does_not_take_is_one_line(onnx_classifier):
    exported = export.ExportedModel(onnx_classifier)
    with pytest.raises(UserError, match=r"model\.onnx fails on an image of 1 x 32 x 32"):
        exported.run(torch.zeros(1, 32, 32))


@pytest.mark.parametrize(
    ("other", "missing"),
    [
        (objects([[0, 0, 10, 10]], [0.9], [1]), 1.0),  # another class
        (objects([[50, 0, 60, 10]], [0.9], [0]), 1.0),  # another place
        (objects([[0, 0, 10, 10], [50, 0, 60, 10]], [0.9, 0.2], [0, 0]), 0.0),  # an uncertain one more
        (objects([[0, 0, 10, 10], [50, 0, 60, 10]], [0.9, 0.8], [0, 0]), 1 / 3),  # a certain one more
    ],
)
def test_certain_objects_that_only_one_side_finds_are_missing(other, missing):
    errors = compare_objects(objects([[0, 0, 10, 10]], [0.9], [0]), other)
    assert errors["missing"] == pytest.approx(missing)


def test_a_file_that_differs_is_refused(tmp_path):
    predictor = make_predictor("classifier")
    export.export(predictor, tmp_path / "model.ts")
    with torch.no_grad():
        predictor.model.backbone.linear.bias[0] += 1  # from now on the model is another one
    rows = [*export.compare(predictor.model, export.ExportedModel(tmp_path / "model.ts"), images())]
    with pytest.raises(UserError, match=r"model\.ts differs from the model: score"):
        export.check(rows, export.EXACT, "model.ts")


@pytest.mark.slow
def test_only_files_that_compute_what_the_model_does_are_kept(classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(export.INT8, "score", 1e-6)  # which 8 bits cannot reach
    file, small = tmp_path / "out/model.onnx", tmp_path / "out/int8.onnx"
    file.parent.mkdir()
    file.write_text("an earlier one")
    with pytest.raises(UserError, match=r"int8\.onnx differs from the model: score"):
        export.export_verified(classifier, file, images(), False, small, images())
    assert [*file.parent.iterdir()] == [file] and file.read_text() == "an earlier one"


def test_the_file_says_what_it_is(detector, onnx_classifier, tmp_path):
    export.export(detector, tmp_path / "model.ts")
    about = export.ExportedModel(tmp_path / "model.ts").description
    assert about["task"] == "detection" and about["outputs"] == ["boxes", "scores", "classes", "masks"]
    assert about["channels"] == detector.cfg.INPUT.FORMAT and about["min_size"] == 64
    assert len(about["classes"]) == len(about["class_ids"]) == 5
    assert about["pixel_mean"] == pytest.approx(detector.cfg.MODEL.PIXEL_MEAN, rel=1e-6)
    model = onnx.load(onnx_classifier)
    about = json.loads({entry.key: entry.value for entry in model.metadata_props}[KEY])
    assert about["task"] == "classification" and about["crop"] == 32 and about["crop_fraction"] == 0.5
    (image,) = model.graph.input
    assert [d.dim_value or d.dim_param for d in image.type.tensor_type.shape.dim][:2] == [1, 3]
    assert all(d.dim_param for d in image.type.tensor_type.shape.dim[2:])


def test_int8_has_quantised_convolutions_and_nearly_the_same_probabilities(
    classifier, onnx_classifier, tmp_path
):
    export.quantize(onnx_classifier, tmp_path / "int8.onnx", (image for _, image in images(8)))
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    made_by = {output: node for node in nodes for output in node.output}
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert convolutions
    stored = {value.name: value.data_type for value in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    for node in convolutions:
        assert {made_by[name].op_type for name in node.input[:2]} == {"DequantizeLinear"}
        assert stored[made_by[node.input[1]].input[0]] == onnx.TensorProto.INT8
    exported = export.ExportedModel(tmp_path / "int8.onnx")
    assert exported.description["task"] == "classification"
    rows = [*export.compare(classifier.model, exported, images())]
    assert 0 < max(row.errors["score"] for row in rows) < export.INT8["score"]


def test_int8_without_images_is_one_line(onnx_classifier, tmp_path):
    with pytest.raises(UserError, match="there are no images to calibrate with"):
        export.quantize(onnx_classifier, tmp_path / "int8.onnx", [])
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize(
    ("recipe", "settings", "expected"),
    [
        ("keypoint_resnest50", (), "MODEL.KEYPOINT_ON must be False"),
        ("panoptic_resnest200_3x", (), "MODEL.META_ARCHITECTURE must be one of"),
        ("quickstart", ("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"), "MODEL.ROI_HEADS.NAME must be"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_its_backbone_is_not(recipe, settings, expected):
    cfg = load_config(model_zoo.get_config_file(recipe), [*settings, "MODEL.DEVICE", "cpu"])
    with pytest.raises(UserError, match=expected):
        export.check_exportable(cfg)
    export.check_exportable(cfg, backbone=True)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.onnx", b"nonsense", "cannot be opened"),
        ("model.pt2", b"nonsense", "cannot be opened"),
        ("model.ts", b"", "cannot be opened"),
        ("model.pth", b"", "its name must end in .onnx, .pt2, .ts"),
    ],
)
def test_a_file_that_is_no_exported_model_is_one_line(name, content, expected, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected):
        export.ExportedModel(tmp_path / name)


def test_onnx_of_somebody_else_is_one_line(tmp_path):
    value = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Relu", ["image"], ["out"])
    graph = onnx.helper.make_graph([node], "g", [value], [out])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"was not written by tools/export\.py"):
        export.ExportedModel(tmp_path / "model.onnx")


def tool(run_python, folder, *words):
    # Parsing takes what follows the configuration's name for its overrides.
    name, settings = FAMILIES["classifier"]
    overrides = [*settings, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", folder]
    config = model_zoo.get_config_file(name)
    return run_python("tools/export.py", "--config-file", config, *words, *overrides)


def test_the_tool_writes_verifies_and_overwrites_only_when_asked(run_python, photos, tmp_path):
    words = ("--allow-random-weights", "--format", "torchscript", "--verify", photos)
    first = tool(run_python, tmp_path, *words, "--time")
    assert first.returncode == 0, first.stderr
    written = tmp_path / "export/model.ts"
    assert f"wrote {written}" in first.stdout and "(a ramp of greys)" in first.stdout
    assert "eager, --optimize" in first.stdout and "times as fast" in first.stdout
    assert [path.name for path in written.parent.iterdir()] == ["model.ts"]  # nothing else is left there
    before = written.read_bytes()
    assert_one_line_error(tool(run_python, tmp_path, *words), "already exists", "--overwrite")
    assert written.read_bytes() == before
    assert tool(run_python, tmp_path, *words, "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--int8", "--format", "pt2"), ("--int8 needs --format onnx", "pt2")),
        (("--openvino", "--format", "torchscript"), ("--openvino needs --format onnx", "torchscript")),
        (("--openvino",), ("--openvino has an effect on --evaluate and --time",)),
        (("--output", "model.onnx", "--format", "pt2"), ("--output model.onnx must end in .pt2",)),
        (("--part", "backbone", "--evaluate"), ("--evaluate and --time are for whole models",)),
        (("--calibrate", "photos"), ("--calibrate is for --int8",)),
        (("--evaluate",), ("DATASETS.TEST is empty",)),
        (("--verify", "missing.jpg"), ("missing.jpg",)),
        ((), ("DATASETS.TEST is empty; name images in --verify",)),
        (("--format", "tflite"), ("invalid choice: 'tflite'",)),
    ],
)
def test_a_wrong_command_is_one_line_and_writes_nothing(words, expected, run_python, tmp_path):
    assert_one_line_error(tool(run_python, tmp_path, *words), *expected)
    assert not (tmp_path / "export").exists()


def test_a_stopped_verification_names_its_signal(onnx_classifier):
    exported = export.ExportedModel(onnx_classifier)

    def stopped(image):  # as TorchScript fails
        raise RuntimeError("The following operation failed ...\nRuntimeError: Interrupted: SIGTERM\n")

    exported._run = stopped
    with pytest.raises(Interrupted, match="SIGTERM"):
        exported.run(images()[0][1])


def test_the_two_files_of_int8_must_differ(run_python, photos, tmp_path):
    (tmp_path / "a_int8.onnx").symlink_to(tmp_path / "a.onnx")
    words = ("--allow-random-weights", "--int8", "--calibrate", photos, "--verify", photos)
    refused = tool(run_python, tmp_path, *words, "--output", tmp_path / "a.onnx")
    assert_one_line_error(refused, "a.onnx", "are the same file")


def test_an_order_of_channels_that_the_network_has_not_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"INPUT\.FORMAT must have as many channels as MODEL\.PIXEL_MEAN"):
        export.export(make_predictor("classifier", "INPUT.FORMAT", "L"), tmp_path / "model.ts")


def test_weights_that_lack_parts_are_refused(run_python, photos, tmp_path):
    assert_one_line_error(tool(run_python, tmp_path, "--verify", photos), "MODEL.WEIGHTS")


@pytest.mark.slow
def test_the_example_without_torch_finds_the_same_boxes(detector, onnx_detector, tmp_path):
    """From a file on disk, through resizing and scaling back."""
    _, image = images()[0]
    Image.fromarray(image.permute(1, 2, 0).numpy()).resize((150, 101)).save(tmp_path / "a.png")
    code = (
        "import sys; sys.path.insert(0, 'examples'); import json, onnx_predict; from PIL import Image\n"
        "boxes, scores, names = onnx_predict.detect(*onnx_predict.load(sys.argv[1]), Image.open(sys.argv[2]))\n"
        "assert 'torch' not in sys.modules\n"
        "print(json.dumps([boxes.tolist(), scores.tolist(), names]))"
    )
    command = [sys.executable, "-c", code, onnx_detector, tmp_path / "a.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    boxes, scores, names = json.loads(done.stdout)
    (expected,) = detector(str(tmp_path / "a.png"))
    found = objects(boxes, scores, [detector.classes.names.index(name) for name in names])
    expected.remove("pred_masks")
    errors = compare_objects(expected, found)
    assert len(found) == len(expected) > 0
    assert errors["missing"] == 0 and errors["box"] < 0.01 and errors["score"] < 1e-4


@pytest.mark.slow
def test_a_whole_resnest50_mask_rcnn_as_onnx(coco_root, tmp_path):
    config = model_zoo.get_config_file("mask_resnest50")
    cfg = load_config(config, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "320"])
    torch.manual_seed(0)
    predictor = Predictor(cfg, allow_random=True)
    decide(predictor.model)
    photos = sorted(Path(coco_root, "coco/val2017").glob("*.jpg"))[:3]
    inputs = export.read_images(predictor, [*map(str, photos)])
    ((file, rows),) = export.export_verified(predictor, tmp_path / "model.onnx", inputs).items()
    assert file.stat().st_size > 150e6 and len(rows) == 4 and min(row.objects for row in rows) > 0


def test_the_graph_of_two_stages_names_masks_only_if_there_are_some(detector):
    assert RCNNGraph(detector.model).names[-1] == "masks"
    assert RCNNGraph(make_predictor("deformable").model).names[-1] == "classes"


def test_a_dataset_without_images_is_one_line():
    DatasetCatalog.register("export_empty", lambda: [])
    try:
        with pytest.raises(UserError, match=r"DATASETS\.TEST export_empty has no images.* in --verify"):
            export.find_images([], ["export_empty"], "DATASETS.TEST", 8, "--verify")
    finally:
        DatasetCatalog.remove("export_empty")
