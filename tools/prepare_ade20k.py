#!/usr/bin/env python
"""Write ADE20K's masks with the labels that detectron2 trains on: 0 to 149, and 255 for what is unlabelled.

%(prog)s $DETECTRON2_DATASETS/ADEChallengeData2016

From annotations/training and annotations/validation, or one of them, it writes annotations_detectron2. An
interrupted call may be repeated: it keeps what has been written.
"""

from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.data.ade20k import write_ade20k_labels
from resnest_d2.files import user_path


def main(args):
    for split, (written, kept) in write_ade20k_labels(args.root).items():
        print(f"{split}: wrote {written} masks, kept {kept} that were there")


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("root", type=user_path, help="the folder ADEChallengeData2016")
    with one_line_errors():
        main(parser.parse_args())
