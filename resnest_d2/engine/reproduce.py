"""The COCO tables, row by row: commands, what they measured, and a table beside the paper's figures."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from tabulate import tabulate

from .. import model_zoo
from ..errors import UserError
from ..model_zoo.records import DETECTORS

#: The paper's recipes are for this many processes, with 2 images each.
_REFERENCE_GPUS = 8
# A run of seconds that still goes through training, evaluation and every component of the row.
_SMOKE = (
    *("SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.REFERENCE_WORLD_SIZE", 0),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", 96, "MODEL.WEIGHTS", ""),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 20, "TEST.PRECISE_BN.ENABLED", False, "TEST.AUG.ENABLED", False),
    *("DATALOADER.NUM_WORKERS", 0, "TEST.DETECTIONS_PER_IMAGE", 20),
)


def select(table: Optional[str], rows: Optional[str], every: bool) -> List[str]:
    """Names of the rows asked for: those of a table, some by name, or all.

    Raises:
        UserError: nothing was asked for, or there is no such row.
    """
    if every:
        return list(DETECTORS)
    if table:
        chosen = [name for name, row in DETECTORS.items() if row.table == table]
        if not chosen:
            raise UserError(f"--table {table}: there are 5 and 6")
        return chosen
    names = [name.strip() for name in (rows or "").split(",") if name.strip()]
    unknown = [name for name in names if name not in DETECTORS]
    if unknown or not names:
        what = f"no row {unknown[0]!r}" if unknown else "name rows with --table, --rows or --all"
        raise UserError(f"{what}; rows are {', '.join(DETECTORS)}")
    return names


class Reproduction:
    """Runs rows one after the other, each in a folder of its own.

    A row whose folder holds ``result.json`` is finished and is not run again; another goes on from its
    last checkpoint.

    Args:
        script: path of ``train_net.py``.
        output: folder of all rows.
        num_gpus: processes; batch size and learning rate follow by the linear rule.
        eval_only: evaluate the authors' trained detectors instead of training.
        smoke: a few iterations at small size.
        overrides: further KEY VALUE pairs for every row.
    """

    def __init__(
        self,
        script: Path,
        output: Path,
        num_gpus: int,
        eval_only: bool = False,
        smoke: bool = False,
        overrides: Sequence[str] = (),
    ) -> None:
        self.script, self.output, self.num_gpus = Path(script), Path(output), num_gpus
        self.eval_only, self.smoke, self.overrides = eval_only, smoke, list(overrides)

    def command(self, name: str) -> List[str]:
        """The exact command of a row."""
        words = [sys.executable, str(self.script), "--config-file", model_zoo.get_config_file(name)]
        words += ["--num-gpus", str(self.num_gpus)]
        words += ["--eval-only"] if self.eval_only else ["--resume"]
        words += ["OUTPUT_DIR", str(self.output / name), "SEED", "1"]
        if self.eval_only and not self.smoke:
            words += ["MODEL.WEIGHTS", model_zoo.get_checkpoint_url(name)]
        elif self.num_gpus != _REFERENCE_GPUS:
            words += ["SOLVER.REFERENCE_WORLD_SIZE", str(_REFERENCE_GPUS)]
        return [*words, *(map(str, _SMOKE) if self.smoke else ()), *self.overrides]

    def scaling(self) -> str:
        """One line on how the recipes are fitted to the machine."""
        if self.num_gpus == _REFERENCE_GPUS:
            return f"{self.num_gpus} processes, as in the recipes"
        return (
            f"{self.num_gpus} process(es) instead of {_REFERENCE_GPUS}: batch size and learning rate times "
            f"{self.num_gpus}/{_REFERENCE_GPUS}, iterations times {_REFERENCE_GPUS}/{self.num_gpus}"
        )

    def slurm(self, names: Sequence[str]) -> str:
        """An sbatch script that runs the rows as a job array."""
        cases = "\n".join(f"  {i}) exec {shlex.join(self.command(name))} ;;" for i, name in enumerate(names))
        return (
            "#!/usr/bin/env bash\n"
            "#SBATCH --job-name=resnest_d2\n"
            f"#SBATCH --array=0-{len(names) - 1}\n"
            f"#SBATCH --gpus-per-node={self.num_gpus}\n"
            "#SBATCH --signal=TERM@120\n"
            "#SBATCH --requeue\n"
            f'case "$SLURM_ARRAY_TASK_ID" in\n{cases}\nesac\n'
        )

    def run(self, name: str) -> Dict[str, Any]:
        """Run a row, unless it is finished. Returns its result."""
        folder = self.output / name
        file = folder / "result.json"
        if file.exists():
            return json.loads(file.read_text())
        folder.mkdir(parents=True, exist_ok=True)
        start = time.time()
        with (folder / "stdout.txt").open("a") as log:
            done = subprocess.run(self.command(name), stdout=log, stderr=subprocess.STDOUT)
        result = self._result(name, done.returncode, time.time() - start)
        # Status 1 is detectron2's when the AP is not the expected one: the row did finish.
        if done.returncode in (0, 1) and result["ap"]:
            file.write_text(json.dumps(result, indent=1))
        return result

    def _result(self, name: str, status: int, seconds: float) -> Dict[str, Any]:
        row, folder = DETECTORS[name], self.output / name
        metrics = folder / "metrics.json"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        ap = {k: v for line in lines for k, v in line.items() if "/AP" in k or "/PQ" in k}
        times = [line["time"] for line in lines if "time" in line]
        last_words = (folder / "stdout.txt").read_text().splitlines()[-1:]
        return {
            "row": name,
            "ap": ap,
            "published": {"bbox/AP": row.box_ap, "segm/AP": row.mask_ap},
            "seconds_per_iteration": statistics.median(times) if times else None,
            "wall_seconds": round(seconds, 1),
            "peak_gpu_memory_mb": max((line.get("max_mem_mb", 0) for line in lines), default=0) or None,
            "status": status,
            "error": last_words[0] if status and not ap and last_words else None,
            "command": self.command(name),
            **environment(),
        }


def environment() -> Dict[str, Any]:
    """Date, versions, commit and hardware."""
    names = ("torch", "torchvision", "numpy", "pycocotools", "fvcore")
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "versions": {name: importlib.metadata.version(name) for name in names},
        "python": platform.python_version(),
        "commit": git.stdout.strip() or None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def markdown(results: Sequence[Dict[str, Any]]) -> str:
    """A table of what was measured beside the paper's figures; an en dash is not measured."""

    def cells(result: Dict[str, Any], key: str) -> List[Any]:
        ours, theirs = result["ap"].get(key), result["published"][key]
        return [ours, theirs, None if None in (ours, theirs) else ours - theirs]

    rows = [
        [r["row"], *cells(r, "bbox/AP"), *cells(r, "segm/AP"), r["seconds_per_iteration"], r["gpu"] or "CPU"]
        for r in results
    ]
    titles = (
        *("row", "box AP", "paper", "difference", "mask AP", "paper", "difference", "s/iter", "device"),
    )
    return tabulate(rows, titles, "github", floatfmt=".2f", missingval="–")
