#!/usr/bin/env python
"""Convert ResNeSt weights of any known format into a file that detectron2 loads.

%(prog)s resnest50-528c19ca.pth                      print what the file is
%(prog)s resnest50-528c19ca.pth resnest50_d2.pth     also convert it

Recognised by content: the authors' classification files, timm's, MMDetection's conversions, backbones with
detectron2's parameter names, whole detectors, this package's checkpoints, and those of timm's and
torchvision's training scripts. Nothing is written unless the backbone is completely covered.
"""

from resnest_d2.checkpoint import averaged, check_target, convert, read_weights, write_weights
from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.evaluation.labels import label
from resnest_d2.files import expanded


def main(args):
    if args.target is not None:
        check_target(args.target, args.source)
    content = read_weights(args.source)
    conversion = convert(averaged(content, args.source) if args.ema else content, args.source)
    print(f"{args.source}: {conversion.source}, {len(conversion.state)} tensors mapped")
    for key in conversion.unexpected_keys:
        print(f"  no place for {label(key, 200)}")
    for key in conversion.missing_keys:
        print(f"  nothing for {key}")
    conversion.check_complete(args.source)
    if args.target is not None:
        write_weights(conversion, args.target)
        print(f"wrote {args.target}")


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument(
        "source", type=expanded, metavar="SRC", help="weight file: .pth, .pkl or .safetensors"
    )
    parser.add_argument(
        "target", type=expanded, metavar="DST", nargs="?", help="file to write: .pth or .safetensors"
    )
    parser.add_argument("--ema", action="store_true", help="convert the averaged weights in the file")
    with one_line_errors():
        main(parser.parse_args())
