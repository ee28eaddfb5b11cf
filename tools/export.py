#!/usr/bin/env python
"""Export a trained model as ONNX, pt2 or TorchScript, and verify that the file computes the same.

ONNX            %(prog)s --config-file output/mine/config.yaml MODEL.WEIGHTS output/mine/model_final.pth
8-bit integers  %(prog)s --int8 --calibrate photos/ --config-file C.yaml MODEL.WEIGHTS W.pth
the backbone    %(prog)s --part backbone --format pt2 --config-file C.yaml MODEL.WEIGHTS W.pth
with its AP     %(prog)s --evaluate --config-file C.yaml MODEL.WEIGHTS W.pth

The file is kept only if its outputs equal the model's, on images of the test set or on those of --verify.
"""

import copy
import sys

from detectron2.utils.logger import setup_logger

from resnest_d2 import UserError, export, optimize_for_inference
from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.engine.cli import add_own_data
from resnest_d2.engine.preflight import check_data, fit_to_own_data
from resnest_d2.engine.signals import ended_at_once
from resnest_d2.files import user_path
from resnest_d2.prediction import Predictor, load_named


def main(args):
    cfg = load_named(args.config_file, args.opts).clone()
    cfg.defrost()
    metadata, notes = fit_to_own_data(cfg, args)
    cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    backbone = args.part == "backbone"
    export.check_exportable(cfg, backbone)
    target, int8 = export.find_targets(args, cfg)
    if args.evaluate:
        notes += check_data(cfg, train=False, own=bool(metadata))
        if not cfg.DATASETS.TEST:
            raise UserError("DATASETS.TEST is empty, so --evaluate has nothing to evaluate on")
    print(*notes, sep="\n", end="\n" * bool(notes), file=sys.stderr)
    names = export.find_images(args.verify, cfg.DATASETS.TEST, "DATASETS.TEST", 8, "--verify")
    usual = int8 and export.find_images(
        args.calibrate, cfg.DATASETS.TRAIN, "DATASETS.TRAIN", 32, "--calibrate"
    )
    predictor = Predictor(cfg, allow_random=args.allow_random_weights)
    images, calibration = (export.read_images(predictor, paths or []) for paths in (names, usual))
    models = {"eager": predictor.model}
    for file, rows in export.export_verified(predictor, target, images, backbone, int8, calibration).items():
        print(f"{export.table(rows)}\nwrote {file}, {file.stat().st_size / 1e6:.1f} MB")
        if args.evaluate or args.time:
            models[file.name] = export.ExportedModel(file)
        if args.openvino:
            models[f"{file.name}, OpenVINO"] = export.ExportedModel(file, openvino=True)
    if args.evaluate:
        setup_logger()
        print(export.measure_accuracy(cfg, models))
    if args.time:
        folded = optimize_for_inference(copy.deepcopy(predictor.model))
        models = {"eager": models.pop("eager"), "eager, --optimize": folded, **models}
        print(export.measure_speed(models, [image for _, image in images]))


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--config-file", default="", metavar="FILE", help="path, or name in the model zoo")
    parser.add_argument("--format", choices=export.EXTENSIONS, default="onnx", help="(default: %(default)s)")
    parser.add_argument("--part", choices=export.PARTS, default="detector", help="(default: the whole model)")
    parser.add_argument(
        "--output", type=user_path, metavar="FILE", help="(default: export/model in OUTPUT_DIR)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    places = {"action": "append", "default": [], "metavar": "IMAGES"}
    parser.add_argument("--verify", **places, help="file, folder or pattern of images to compare on")
    parser.add_argument("--int8", action="store_true", help="also with convolutions in 8-bit integers")
    parser.add_argument("--calibrate", **places, help="images for that (default: of DATASETS.TRAIN)")
    parser.add_argument("--evaluate", action="store_true", help="evaluate model and files on DATASETS.TEST")
    parser.add_argument("--time", action="store_true", help="time model and files on the compared images")
    parser.add_argument("--openvino", action="store_true", help="for --evaluate and --time, also in OpenVINO")
    parser.add_argument("--allow-random-weights", action="store_true", help="even if parts are missing")
    add_own_data(parser, ["val"])
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the configuration")
    parser.set_defaults(eval_only=True, epochs=None)
    with one_line_errors(), ended_at_once():
        main(parser.parse_intermixed_args())
