#!/usr/bin/env python
"""Measure speed and memory beside the released implementation, timm and ResNet-50, in turn and in one run.

%(prog)s                          everything, 5 rounds each: an hour on two cores
%(prog)s --only backbone          what holds the word
%(prog)s --page docs/BENCHMARKS.md

The others are what requirements/peers.txt and timm install; a row whose peer is missing ends it.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from resnest_d2 import UserError
from resnest_d2.benchmark import Result, compare, comparisons
from resnest_d2.benchmark.page import comparison_table, page, pipeline_table, profile_table
from resnest_d2.benchmark.pipeline import PIPELINES, Pipeline, measure_pipeline
from resnest_d2.checkpoint.files import atomic_write_text
from resnest_d2.engine import one_line_errors


def main(args):
    known = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    measured = {result.comparison: result for result in map(Result.of, known.get("results", []))}
    loaded = {values["config"]: Pipeline(**values) for values in known.get("pipelines", [])}
    rows = [c for c in comparisons(args.device) if args.only in c.title]
    loaders = [name for name in PIPELINES if args.only in f"loader of {name}"]
    if not rows and not loaders:
        raise UserError(f"--only: no row holds {args.only!r}; docs/BENCHMARKS.md lists them")

    def keep():
        if args.json:
            content = {"results": measured, "pipelines": loaded}
            values = {key: [r._asdict() for r in of.values()] for key, of in content.items()}
            atomic_write_text(args.json, json.dumps(values))

    for row in rows:
        if row not in measured:
            measured[row] = compare(row, args.device, args.rounds)
            keep()
    for name in loaders:
        if name not in loaded:
            with tempfile.TemporaryDirectory() as folder:
                loaded[name] = measure_pipeline(name, Path(folder, "shapes"), args.device)
            keep()
    results, pipelines = [measured[row] for row in rows], [loaded[name] for name in loaders]
    print(comparison_table(results), *(profile_table(r) for r in results if r.our_profile))
    print(pipeline_table(pipelines) if pipelines else "")
    if args.page:
        args.page.write_text(page(results, pipelines, args.device))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="repetitions a side (default: %(default)s)")
    parser.add_argument("--only", default="", help="rows whose title holds this; 'loader' for the loaders")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write every measurement; go on from it")
    parser.add_argument("--page", type=Path, help="write the benchmarks page, Markdown")
    with one_line_errors():
        main(parser.parse_args())
