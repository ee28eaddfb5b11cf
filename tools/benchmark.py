#!/usr/bin/env python
"""Measure speed and memory beside the released implementation, timm and ResNet-50, in turn and in one run.

%(prog)s                          all rows, 7 rounds each
%(prog)s --only backbone          rows whose title holds the word
%(prog)s --page docs/BENCHMARKS.md

The others are what requirements/peers.txt and timm install; without them, their rows fail.
"""

import argparse
import json
from pathlib import Path

import torch

from resnest_d2.benchmark import Result, compare, comparisons, markdown
from resnest_d2.benchmark.page import page
from resnest_d2.engine import one_line_errors


def main(args):
    chosen = [c for c in comparisons(args.device) if args.only in c.title]
    known = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    measured = {result.comparison: result for result in map(Result.of, known)}
    results = []
    for comparison in chosen:
        results.append(measured.get(comparison) or compare(comparison, args.device, args.rounds))
        if args.json:
            args.json.write_text(json.dumps([result._asdict() for result in results], indent=1))
    print(markdown(results))
    if args.page:
        args.page.write_text(page(results, args.device))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="repetitions a side (default: %(default)s)")
    parser.add_argument("--only", default="", help="rows whose title holds this")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write every measurement; go on from it")
    parser.add_argument("--page", type=Path, help="write the benchmarks page, Markdown")
    with one_line_errors():
        main(parser.parse_args())
