#!/usr/bin/env python
"""Compare speed and memory with the released implementation, timm and ResNet-50, measured in turn.

%(prog)s                          everything, 5 rounds each: an hour on two cores
%(prog)s --only backbone          rows whose title contains the word
%(prog)s --json cpu.json --page docs/BENCHMARKS.md
                                  write this machine's part of the page; continue from the file if interrupted
%(prog)s --json cpu.json --page docs/BENCHMARKS.md --only "backbone inference" --again
                                  measure that row again, and write the page from everything in the file

The other packages come from requirements/peers.txt and timm; a row that needs a missing one stops the run.
"""

import sys
import time

import torch

from resnest_d2 import UserError
from resnest_d2.benchmark import check_device, compare, comparisons, temporary_folder
from resnest_d2.benchmark.page import (
    comparison_table,
    facts_of,
    page,
    page_before,
    part,
    pipeline_table,
    profile_table,
)
from resnest_d2.benchmark.pipeline import PIPELINES, measure_pipeline
from resnest_d2.benchmark.store import Store
from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.errors import check_number, nearest
from resnest_d2.files import atomic_write_text, user_path


def main(args):
    check_number("--rounds", args.rounds, at_least=1)
    if args.minutes is not None:
        check_number("--minutes", args.minutes, at_least=0)
    check_device(args.device)
    if args.page:
        page_before(args.page)  # fail before an hour of measurements, not after it
    end = time.monotonic() + 60 * (float("inf") if args.minutes is None else args.minutes)
    store = Store(args.json, facts_of(args.device))
    all_rows = comparisons(args.device)
    rows = [c for c in all_rows if args.only == c.title] or [c for c in all_rows if args.only in c.title]
    loaders = [name for name in PIPELINES if args.only in f"loader of {name}"]
    if not rows and not loaders:
        hint = nearest(args.only, [row.title for row in all_rows], limit=3)
        raise UserError(f"--only: no title contains {args.only!r}; {hint} docs/BENCHMARKS.md lists them")
    failed = []
    for row in rows:
        if (args.again or row not in store.results) and time.monotonic() < end:
            try:
                store.add(compare(row, args.device, args.rounds))
            except UserError as e:
                if not args.keep_going:
                    raise
                failed.append(row)
                print(f"error: {row.title}: {e}", file=sys.stderr)
    for name in loaders:
        if (args.again or name not in store.pipelines) and time.monotonic() < end:
            with temporary_folder() as folder:
                store.add(measure_pipeline(name, folder / "shapes", args.device))
    results = [store.results[row] for row in rows if row in store.results]
    print(comparison_table(rows, store.results), *(profile_table(r) for r in results if r.our_profile))
    print(pipeline_table([store.pipelines[name] for name in loaders if name in store.pipelines]))
    if args.page:
        new = part(all_rows, store.results, [*store.pipelines.values()], args.device, store.facts)
        atomic_write_text(args.page, page(page_before(args.page), args.device, new))
    return bool(failed)


def parser():
    parser = Parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions per side (default: %(default)s)")
    parser.add_argument(
        "--only", default="", help="row with this title, or rows containing it; 'loader' for loaders"
    )
    parser.add_argument("--again", action="store_true", help="measure rows again that --json already has")
    parser.add_argument("--minutes", type=float, help="start no row after this many minutes")
    parser.add_argument("--keep-going", action="store_true", help="skip rows that fail, and exit with 1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=user_path, help="file to save measurements in and continue from")
    parser.add_argument("--page", type=user_path, help="Markdown page to write this device's part into")
    return parser


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parser().parse_args()))
