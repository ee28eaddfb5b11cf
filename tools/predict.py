#!/usr/bin/env python
"""Predict with a trained model on images, folders, patterns, videos or a camera: pictures, and JSON.

photos and a video      %(prog)s photos/ 'more/**/*.jpg' clip.mp4 --output drawn --json found.json \\
                            --config-file output/mine/config.yaml MODEL.WEIGHTS output/mine/model_final.pth
the authors' detector   %(prog)s photos/ --output drawn --config-file cascade_resnest101
camera 0                %(prog)s 0 --output drawn --config-file ...    until Ctrl-C

What comes before the first KEY VALUE pair is predicted on. What cannot be read is named and left out.

Exit status: 0 if everything was predicted on, 1 if something was left out, 2 if nothing could be done.
"""

import sys

from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.config import SEGMENTOR
from resnest_d2.engine.signals import ended_at_once
from resnest_d2.errors import check_number
from resnest_d2.files import user_path
from resnest_d2.prediction import (
    Outputs,
    Predictor,
    find_inputs,
    load_named,
    predict_files,
    read_names,
    split_overrides,
)


def main(args):
    check_number("--threshold", args.threshold, at_least=0, at_most=1)
    if args.batch_size is not None:
        check_number("--batch-size", args.batch_size, at_least=1)
    outputs = Outputs(args.output, args.json, args.overwrite)
    words, overrides = split_overrides(args.words)
    cfg = load_named(args.config_file, overrides)
    sources = find_inputs(words, outputs.folders)
    outputs.check(sources, cfg.MODEL.META_ARCHITECTURE == SEGMENTOR)
    predictor = Predictor(
        cfg,
        batch_size=args.batch_size,
        threshold=args.threshold,
        classes=read_names(args.classes) if args.classes else None,
        allow_random=args.allow_random_weights,
        optimize=args.optimize,
        half=args.half,
    )
    with ended_at_once():
        done = predict_files(predictor, sources, outputs)
    written = [f"{path}{'/' * path.is_dir()}" for path in (args.output, args.json) if path]
    print(f"{done.images} images and {done.frames} frames: {', '.join(written)}")
    if done.failed:
        print(f"{done.failed} were left out", file=sys.stderr)
    sys.exit(int(done.failed > 0))


if __name__ == "__main__":
    parser = Parser(__doc__)
    # Inputs come first and as plain words, so that a shell can expand a pattern.
    parser.add_argument("words", nargs="*", metavar="INPUT ... [KEY VALUE ...]", help="as above")
    parser.add_argument("--config-file", default="", metavar="FILE", help="path, or name in the model zoo")
    parser.add_argument("--output", type=user_path, metavar="DIR", help="folder for pictures and videos")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="all predictions in COCO's format")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="lowest score of objects (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        help="neighbours of one size in a batch (default: as in evaluation)",
    )
    parser.add_argument("--classes", type=user_path, metavar="FILE", help="JSON list of the classes' names")
    parser.add_argument(
        "--allow-random-weights", action="store_true", help="even if MODEL.WEIGHTS lacks parts"
    )
    parser.add_argument("--optimize", action="store_true", help="fold norms into convolutions: faster")
    parser.add_argument("--half", action="store_true", help="--optimize, with the backbone in half precision")
    with one_line_errors():
        main(parser.parse_intermixed_args())
