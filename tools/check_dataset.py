#!/usr/bin/env python
"""Check a dataset in COCO's format: what is wrong, how often, and where.

%(prog)s annotations/instances_train2017.json train2017/
%(prog)s mine.json images/ --fix mine_fixed.json

Exit status: 0 where nothing was found, 1 where something was, 2 where the file cannot be read at all.
"""

import sys

from resnest_d2.data import check_coco
from resnest_d2.engine import Parser, one_line_errors
from resnest_d2.files import user_path


def main(args):
    images = "header" if args.quick else "decode"
    report = check_coco(args.annotations, args.images, images, args.fix, args.overwrite)
    print(report)
    if args.fix:
        print(f"wrote {args.fix}, which lacks {report.losses() or 'nothing'}")
    sys.exit(bool(report.counts or report.notes))


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("annotations", type=user_path, help="annotation file, JSON")
    parser.add_argument("images", type=user_path, help="folder of the images")
    parser.add_argument("--fix", type=user_path, metavar="OUT", help="write a mended copy of the annotations")
    parser.add_argument("--overwrite", action="store_true", help="let it replace another annotation file")
    parser.add_argument("--quick", action="store_true", help="read the images' headers only")
    with one_line_errors():
        main(parser.parse_args())
