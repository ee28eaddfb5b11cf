#!/usr/bin/env python
"""Sort ImageNet's validation images into a folder for each class, as training images come.

%(prog)s $DETECTRON2_DATASETS/imagenet/val --devkit ILSVRC2012_devkit_t12
%(prog)s $DETECTRON2_DATASETS/imagenet/val --solution LOC_val_solution.csv

The classes are those of the devkit, which needs SciPy, or of Kaggle's list. Images are moved within the
folder; an interrupted call may be repeated.
"""

from resnest_d2 import UserError
from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.data.imagenet import read_devkit, read_solution, sort_validation
from resnest_d2.files import user_path


def main(args):
    if not (args.devkit or args.solution):
        raise UserError("the classes are unknown; name the devkit with --devkit, or --solution")
    names = read_devkit(args.devkit) if args.devkit else read_solution(args.solution)
    moved, kept = sort_validation(args.images, names)
    print(f"moved {moved} images, {kept} were in their places")


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("images", type=user_path, help="folder of ILSVRC2012_val_*.JPEG")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--devkit", type=user_path, help="folder of the unpacked devkit")
    source.add_argument("--solution", type=user_path, help="LOC_val_solution.csv")
    with one_line_errors():
        main(parser.parse_args())
