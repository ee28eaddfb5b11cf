#!/usr/bin/env python
"""Show what a trained network looks at: pictures, and a page of them.

%(prog)s attention --config-file C.yaml MODEL.WEIGHTS W.pth     of Split-Attention over its splits
%(prog)s cam --config-file C.yaml MODEL.WEIGHTS W.pth           where an image speaks for a detection or class
%(prog)s cam --layer res4 --class dog --num-images 20 --config-file C.yaml MODEL.WEIGHTS W.pth
"""

import sys
from pathlib import Path

from resnest_d2 import UserError, engine
from resnest_d2.errors import check_number, needs
from resnest_d2.explain import dead_channels, explain_images, measure_attention
from resnest_d2.explain.images import class_names
from resnest_d2.files import user_path
from resnest_d2.processes import check_alone

#: What can be shown, with the default and the largest number of images.
KINDS = {"attention": (100, 5000), "cam": (12, 200)}


def main(cfg, args):
    check_alone("pictures are drawn")
    with needs("matplotlib", "drawing"):
        from resnest_d2.explain import pages
    usual, most = KINDS[args.kind]
    count = usual if args.num_images is None else args.num_images
    check_number("--num-images", count, at_least=1, at_most=most)
    check_number("--detection", args.detection, at_least=1)
    if args.kind == "attention" and (args.layer or args.class_name or args.detection > 1):
        raise UserError("--layer, --class and --detection are for cam; leave them out")
    root = args.output or Path(cfg.OUTPUT_DIR) / args.kind
    folders = {name: root / name if len(cfg.DATASETS.TEST) > 1 else root for name in cfg.DATASETS.TEST}
    for folder in folders.values():
        pages.prepare_folder(folder, args.overwrite)
    model = engine.load_model(cfg, **engine.model_options(args))
    for dataset, folder in folders.items():
        title = f"{Path(args.config_file).stem}, {dataset}"
        if args.kind == "attention":
            blocks, used = measure_attention(cfg, model, dataset, count)
            pages.write_attention(blocks, used, class_names(cfg, dataset), title, folder)
            print(
                *dead_channels(blocks),
                f"{len(blocks)} blocks on {len(used)} images: {folder / pages.PAGE}",
                sep="\n",
            )
        else:
            explained = explain_images(
                cfg,
                model,
                dataset,
                count,
                layer=args.layer,
                detection=args.detection,
                class_name=args.class_name,
            )
            paths = pages.write_maps(explained, title, folder)
            print(f"{len(paths)} maps of {len(explained)} images: {folder / pages.PAGE}")


if __name__ == "__main__":
    parser = engine.argument_parser(__doc__)
    parser.add_argument(
        "--num-images", type=int, help="evenly spaced in the dataset (default: 100; of cam 12)"
    )
    parser.add_argument("--output", type=user_path, help="folder (default: attention/ or cam/ in OUTPUT_DIR)")
    parser.add_argument("--overwrite", action="store_true", help="even if the folder is not empty")
    parser.add_argument(
        "--layer",
        help="of cam: a feature of the backbone or a module (default: that of the detection, or res5)",
    )
    parser.add_argument(
        "--detection", type=int, default=1, help="of cam: which one, by descending score (default: 1)"
    )
    parser.add_argument(
        "--class", dest="class_name", metavar="NAME", help="of cam: this class, or detections of it"
    )
    parser.set_defaults(eval_only=True)
    words = sys.argv[1:]
    kind = words.pop(0) if words and words[0] in KINDS else None  # before the flags, as opts take the rest
    args = parser.parse_args(words)
    if kind is None:
        parser.error(f"the first word must be {' or '.join(KINDS)}")
    args.kind = kind
    engine.run(main, args)
