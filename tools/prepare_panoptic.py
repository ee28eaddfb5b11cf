#!/usr/bin/env python
"""Write the semantic maps that panoptic recipes train on, from COCO's panoptic annotations.

cd $DETECTRON2_DATASETS/coco
%(prog)s annotations/panoptic_train2017.json panoptic_train2017 panoptic_stuff_train2017
%(prog)s annotations/panoptic_val2017.json panoptic_val2017 panoptic_stuff_val2017
"""

from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.data.panoptic import write_semantic_maps
from resnest_d2.files import user_path


def main(args):
    count = write_semantic_maps(args.annotations, args.segments, args.output)
    print(f"wrote {count} semantic maps to {args.output}")


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("annotations", type=user_path, help="panoptic annotation file, JSON")
    parser.add_argument("segments", type=user_path, help="its folder of PNGs")
    parser.add_argument("output", type=user_path, help="folder for the semantic maps")
    with one_line_errors():
        main(parser.parse_args())
