"""train_net.py that writes the loss of each iteration to losses.json, and the AP to the same file."""

import json
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm

from resnest_d2 import engine


class Losses(HookBase):
    def __init__(self):
        self.values = {}

    def after_step(self):
        if comm.is_main_process():
            self.values[self.trainer.iter] = self.trainer.storage.latest()["total_loss"][0]
            file = Path(self.trainer.cfg.OUTPUT_DIR) / "losses.json"
            known = json.loads(file.read_text()) if file.exists() else {}
            file.write_text(json.dumps({**known, **{str(k): v for k, v in self.values.items()}}))


def main(cfg, args):
    trainer = engine.Trainer(cfg)
    trainer.register_hooks([Losses()])
    trainer.resume_or_load(args.resume)
    trainer.train()


if __name__ == "__main__":
    engine.run(main, engine.argument_parser(__doc__).parse_args())
