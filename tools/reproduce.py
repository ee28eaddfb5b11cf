#!/usr/bin/env python
"""Reproduce rows of the paper's tables, one after the other: train and evaluate, or only evaluate.

%(prog)s --table 5                             all rows of table 5
%(prog)s --rows mask_resnest50,mask_resnet50   these rows
%(prog)s --all --eval-only                     the authors' trained models, if you have the files
%(prog)s --all --dry-run                       print the commands
%(prog)s --table 6 --slurm                     print an sbatch script

If stopped, the same command continues: finished rows are not run again, the others resume from their last
checkpoint. Results are in OUTPUT/results.json and OUTPUT/table.md, beside the published figures.

Exit status: 0 if all rows finished, 1 if one did not, 2 if nothing could be run or every row was refused.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch

from resnest_d2 import UserError
from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.engine.reproduce import Reproduction, released, select
from resnest_d2.engine.signals import ended_at_once
from resnest_d2.files import user_path


def main(args):
    names = select(args.table, args.rows, args.all)
    if args.eval_only and not args.smoke and not args.rows:
        names, others = released(names)
        if others:
            print(f"Left out, as no trained model was released: {', '.join(others)}", file=sys.stderr)
    script = Path(__file__).with_name("train_net.py")
    options = (args.num_gpus, args.num_machines, args.eval_only, args.smoke, args.opts)
    rows = Reproduction(script, args.output, *options)
    rows.check_overrides(names)
    if args.slurm:
        print(rows.slurm(names))
        return
    if args.num_machines > 1:
        raise UserError(f"--num-machines {args.num_machines} requires --slurm")
    if args.dry_run:
        for name in names:
            print(shlex.join(rows.command(name)))
        return
    with ended_at_once(), rows.locked():
        sys.exit(run(rows, names))


def run(rows, names):
    """Run the rows, and write the results so far after each. Returns the exit status."""
    rows.check(names)
    print(rows.scaling(names))
    results = {name: rows.finished(name) for name in names}
    for i, name in enumerate(names, 1):
        print(f"[{i}/{len(names)}] {name}, log in {rows.output / name}/stdout.txt", flush=True)
        results[name] = rows.run(name)
        if "error" in results[name]:
            print(f"  failed with status {results[name]['status']}: {results[name]['error']}", flush=True)
        rows.write([result for result in results.values() if result])
    print(rows.table([*results.values()]))
    statuses = {result.get("status") if "error" in result else 0 for result in results.values()}
    return 2 if statuses == {2} else int(statuses != {0})


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--table", metavar="N", help="rows of this table of the paper: 2 to 7")
    parser.add_argument(
        "--ablation", dest="table", action="store_const", const="2", help="the same as --table 2"
    )
    parser.add_argument("--rows", metavar="A,B", help="rows by name")
    parser.add_argument("--all", action="store_true", help="every published row")
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate the released models, of rows that have one"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--slurm", action="store_true", help="print an sbatch array script, run nothing")
    parser.add_argument("--smoke", action="store_true", help="2 iterations and an evaluation on small images")
    parser.add_argument(
        "--output", type=user_path, default=Path("output/reproduce"), help="default: %(default)s"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=max(1, torch.cuda.device_count()), help="default: all visible"
    )
    parser.add_argument("--num-machines", type=int, default=1, help="with --slurm (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every row")
    with one_line_errors():
        main(parser.parse_args())
