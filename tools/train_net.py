#!/usr/bin/env python
"""Train and evaluate a detector, a segmentation network or a classifier; with --eval-only only evaluate it.

8 GPUs            %(prog)s --num-gpus 8 --config-file configs/cascade_resnest101.yaml
one GPU           %(prog)s --config-file configs/cascade_resnest101.yaml \\
                      SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.0025
resume            %(prog)s --config-file configs/cascade_resnest101.yaml --resume
evaluate          %(prog)s --config-file configs/cascade_resnest101.yaml --eval-only \\
                      MODEL.WEIGHTS output/model_final.pth
your own data     %(prog)s --config-file configs/quickstart.yaml --epochs 10 \\
                      --train-json A.json --train-images DIR --val-json B.json --val-images DIR
two machines      %(prog)s --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT \\
                      --num-gpus 8 --config-file configs/cascade_resnest101.yaml
"""

from resnest_d2 import engine


def main(cfg, args):
    if args.eval_only:
        engine.evaluate(cfg, **engine.model_options(args))
    else:
        engine.train(cfg, args.resume, args.allow_random_weights)


if __name__ == "__main__":
    engine.run(main, engine.argument_parser(__doc__).parse_args())
