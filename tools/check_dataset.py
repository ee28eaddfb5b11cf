#!/usr/bin/env python
"""Check a dataset in COCO format: what is wrong, how often, and where.

%(prog)s annotations/instances_train2017.json train2017/
%(prog)s mine.json images/ --fix mine_fixed.json

Exit status: 0 if nothing was found, 1 if something was, 2 if a file cannot be read or written.
"""

import sys

from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.data import check_coco
from resnest_d2.files import user_path


def main(args):
    images = "header" if args.quick else "decode"
    report = check_coco(args.annotations, args.images, images, args.fix, args.overwrite)
    print(report)
    if args.fix:
        print(f"wrote {args.fix}, leaving out {report.losses() or 'nothing'}")
    sys.exit(bool(report.counts or report.notes))


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("annotations", type=user_path, help="annotation file, JSON")
    parser.add_argument("images", type=user_path, help="folder of images")
    parser.add_argument("--fix", type=user_path, metavar="OUT", help="write a repaired copy to this file")
    parser.add_argument("--overwrite", action="store_true", help="let OUT replace an annotation file")
    parser.add_argument("--quick", action="store_true", help="read only the headers of the images")
    with one_line_errors():
        main(parser.parse_args())
