#!/usr/bin/env python
"""Draw a model's predictions on its test images beside the ground truth, one PNG per image.

%(prog)s --config-file configs/quickstart.yaml MODEL.WEIGHTS output/quickstart/model_final.pth
"""

from pathlib import Path

from resnest_d2 import engine
from resnest_d2.errors import check_number
from resnest_d2.evaluation import draw_predictions
from resnest_d2.files import check_writable, user_path
from resnest_d2.processes import check_alone


def main(cfg, args):
    check_alone("pictures are drawn")
    check_number("--num-images", args.num_images, at_least=1)
    check_number("--score-threshold", args.score_threshold, at_least=0, at_most=1)
    root = args.output or Path(cfg.OUTPUT_DIR) / "pictures"
    check_writable(root / "1.png", "name a folder in --output")
    model = engine.load_model(cfg, **engine.model_options(args))
    for dataset in cfg.DATASETS.TEST:
        folder = root / dataset if len(cfg.DATASETS.TEST) > 1 else root
        paths = draw_predictions(cfg, model, dataset, folder, args.num_images, args.score_threshold)
        print(f"{len(paths)} pictures of {dataset} in {folder}/")


if __name__ == "__main__":
    parser = engine.argument_parser(__doc__)
    parser.add_argument("--output", type=user_path, help="folder (default: pictures/ in OUTPUT_DIR)")
    parser.add_argument("--num-images", type=int, default=12, help="how many to draw (default: %(default)s)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, help="lowest score drawn (default: %(default)s)"
    )
    parser.set_defaults(eval_only=True)
    engine.run(main, parser.parse_args())
