#!/usr/bin/env python
"""Check a dataset in COCO format, of semantic masks or of image folders: what is wrong, how often, and where.

%(prog)s annotations/instances_train2017.json train2017/
%(prog)s mine.json images/ --fix mine_fixed.json
%(prog)s masks/ images/ --classes classes.json
%(prog)s masks/ images/ --classes classes.json --fix masks_fixed/
%(prog)s train/                        with a folder of images for each class

classes.json is a list of the labels' names, or an object whose "classes" are such a list. It may also have
"ignore_label", by default 255, and "colours", an [R, G, B] per class by which --fix converts masks.

Exit status: 0 if nothing was found, 1 if something was, 2 if a file cannot be read or written.
"""

import sys

from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.data import check_coco, check_folder, check_semantic
from resnest_d2.errors import UserError
from resnest_d2.files import user_path


def main(args):
    how = {"fix": args.fix, "overwrite": args.overwrite}
    images = "header" if args.quick else "decode"
    if args.images is None:
        if not args.annotations.exists():
            raise UserError(f"cannot read {args.annotations} (No such file or directory); correct the name")
        if args.classes or args.fix or not args.annotations.is_dir():
            raise UserError(
                f"{args.annotations}: name the folder of its images as the second argument; without one, it "
                "must be a folder of classes, which takes neither --fix nor --classes"
            )
        report = check_folder(args.annotations, images)
    elif args.classes or args.annotations.is_dir():
        report = check_semantic(args.annotations, args.images, args.classes, images, **how)
    else:
        report = check_coco(args.annotations, args.images, images, **how)
    print(report)
    if args.fix:
        print(f"wrote {args.fix}, leaving out {report.losses() or 'nothing'}")
    sys.exit(bool(report.counts or report.notes))


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("annotations", type=user_path, help="JSON file; folder of masks, PNG; or of classes")
    parser.add_argument(
        "images", type=user_path, nargs="?", help="folder of images (without: those of classes)"
    )
    parser.add_argument("--classes", type=user_path, metavar="FILE", help="classes of the masks, JSON")
    parser.add_argument("--fix", type=user_path, metavar="OUT", help="write a repaired copy to OUT")
    parser.add_argument("--overwrite", action="store_true", help="let OUT replace annotations")
    parser.add_argument("--quick", action="store_true", help="read only the headers of the images")
    with one_line_errors():
        main(parser.parse_args())
