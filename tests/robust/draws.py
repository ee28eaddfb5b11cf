"""What each process draws with 0, 1 and 2 loader workers: draws_RANK.json in OUTPUT_DIR."""

import hashlib
import itertools
import json
from pathlib import Path

from detectron2.utils import comm

from resnest_d2 import engine
from resnest_d2.data.loader import build_train_loader


def main(cfg, args):
    cfg = cfg.clone()
    cfg.defrost()
    draws = {}
    for workers in (0, 1, 2):
        cfg.DATALOADER.NUM_WORKERS = workers
        batches = itertools.islice(build_train_loader(cfg), 3)
        draws[workers] = [
            [
                record["file_name"],
                min(record["image"].shape[1:]),
                hashlib.sha256(record["image"].numpy().tobytes()).hexdigest(),
                *record["instances"].gt_boxes.tensor.flatten().tolist(),
            ]
            for batch in batches
            for record in batch
        ]
    Path(cfg.OUTPUT_DIR, f"draws_{comm.get_rank()}.json").write_text(json.dumps(draws))


if __name__ == "__main__":
    engine.run(main, engine.argument_parser(__doc__).parse_args())
