#!/usr/bin/env python
"""Write an evaluation as one HTML page: AP, classes, curves, kinds of error, training, best and worst images.

%(prog)s output/quickstart                      the folder of a run of train_net.py
%(prog)s folder --annotations val.json --images val/ --output page.html
"""

from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.evaluation.report import load_evaluation, write_report
from resnest_d2.files import user_path


def main(args):
    output = args.output or args.folder / "report.html"
    evaluation = load_evaluation(args.folder, args.annotations, args.images, args.row)
    write_report(evaluation, output, args.num_pictures)
    print(f"wrote {output}")


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("folder", type=user_path, help="OUTPUT_DIR of a run, or a folder of detections")
    parser.add_argument("--output", type=user_path, help="HTML file (default: report.html in the folder)")
    parser.add_argument(
        "--annotations", type=user_path, help="ground truth (default: the file that the run recorded)"
    )
    parser.add_argument("--images", type=user_path, help="folder of its images")
    parser.add_argument("--row", help="published row to compare with (default: the run's configuration)")
    parser.add_argument(
        "--num-pictures", type=int, default=6, help="of the best and of the worst (default: %(default)s)"
    )
    with one_line_errors():
        main(parser.parse_args())
