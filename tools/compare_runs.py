#!/usr/bin/env python
"""Compare runs of several seeds: the mean and the range of a metric in each group, as a table and a picture.

%(prog)s --group "radix 1" output/radix1_* --group "radix 2" output/radix2_* --picture radix.svg
"""

from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.evaluation import comparison
from resnest_d2.files import user_path


def main(args):
    groups = [(name, [user_path(folder) for folder in folders]) for name, *folders in args.group]
    metric, groups = comparison.read_groups(groups, args.metric)
    if args.picture:
        comparison.draw(metric, groups, args.picture)
    print(comparison.table(metric, groups))


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument(
        "--group",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "FOLDER"),
        help="a name, and the OUTPUT_DIRs of the runs; once for each group",
    )
    parser.add_argument("--metric", help="task and metric (default: the main one, such as bbox/AP)")
    parser.add_argument("--picture", type=user_path, help="SVG file of all runs and the means")
    with one_line_errors():
        main(parser.parse_args())
