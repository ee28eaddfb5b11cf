#!/usr/bin/env python
"""Make a folder for the Hugging Face hub from a run: weights, configuration, classes and a model card.

%(prog)s output/quickstart --licence apache-2.0
%(prog)s output/quickstart --licence cc-by-4.0 --push USER/NAME      also upload it

Others then name the weights in MODEL.WEIGHTS, as hf://USER/NAME.
"""

from resnest_d2 import hub
from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.files import user_path


def main(args):
    output = args.output or args.folder / "share"
    for file in hub.share(args.folder, output, args.licence, args.push, args.overwrite):
        print(f"wrote {file}")
    if args.push is not None:
        print(f"uploaded to {hub.push(output, args.push)}")


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("folder", type=user_path, help="OUTPUT_DIR of a finished training")
    parser.add_argument("--licence", "--license", default="", help="of the weights, as the hub has it")
    parser.add_argument("--output", type=user_path, help="folder to write (default: share/ in OUTPUT_DIR)")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier call")
    parser.add_argument("--push", metavar="USER/NAME", help="upload the folder as this model")
    with one_line_errors():
        main(parser.parse_args())
