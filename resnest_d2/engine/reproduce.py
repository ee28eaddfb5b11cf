"""The COCO tables, row by row: commands, what they measured, and a table beside the paper's figures."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from tabulate import tabulate

from .. import model_zoo
from ..data import check_datasets
from ..data.panoptic import add_panoptic_of_instances
from ..errors import UserError
from ..model_zoo.records import DETECTORS
from .record import FILE as RESULTS
from .signals import Interrupted, end_with_parent, noted_signals

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

    A row whose folder holds ``results.json`` is finished and is not run again; another goes on from its
    last checkpoint.

    Args:
        script: path of ``train_net.py``.
        output: folder of all rows.
        num_gpus: processes a machine; batch size and learning rate follow by the linear rule.
        num_machines: with more than one, the commands are for SLURM only.
        eval_only: evaluate the authors' trained detectors instead of training.
        smoke: a few iterations at small size.
        overrides: further KEY VALUE pairs for every row.
    """

    def __init__(
        self,
        script: Path,
        output: Path,
        num_gpus: int,
        num_machines: int = 1,
        eval_only: bool = False,
        smoke: bool = False,
        overrides: Sequence[str] = (),
    ) -> None:
        self.script, self.output = Path(script), Path(output)
        self.num_gpus, self.num_machines = num_gpus, num_machines
        self.eval_only, self.smoke, self.overrides = eval_only, smoke, list(overrides)

    @property
    def processes(self) -> int:
        """Processes on all machines."""
        return self.num_gpus * self.num_machines

    def arguments(self, name: str) -> List[str]:
        """The arguments of ``train_net.py`` for a row, but for the number of processes."""
        words = ["--config-file", model_zoo.get_config_file(name)]
        words += ["--eval-only"] if self.eval_only else ["--resume"]
        words += ["OUTPUT_DIR", str(self.output / name), "SEED", "1"]
        if self.eval_only and not self.smoke:
            words += ["MODEL.WEIGHTS", model_zoo.get_checkpoint_url(name)]
        elif self.processes != _REFERENCE_GPUS:
            words += ["SOLVER.REFERENCE_WORLD_SIZE", str(_REFERENCE_GPUS)]
        return [*words, *(map(str, _SMOKE) if self.smoke else ()), *self.overrides]

    def command(self, name: str) -> List[str]:
        """The exact command of a row on one machine."""
        return [sys.executable, str(self.script), "--num-gpus", str(self.num_gpus), *self.arguments(name)]

    def scaling(self) -> str:
        """One line on how the recipes are fitted to the machines."""
        if self.processes == _REFERENCE_GPUS:
            return f"{self.processes} processes, as in the recipes"
        return (
            f"{self.processes} process(es) instead of {_REFERENCE_GPUS}: batch size and learning rate times "
            f"{self.processes}/{_REFERENCE_GPUS}, iterations times {_REFERENCE_GPUS}/{self.processes}"
        )

    def slurm(self, names: Sequence[str]) -> str:
        """An sbatch script that runs the rows as a job array, each on ``num_machines`` through torchrun."""
        cases = "\n".join(
            f"  {i}) arguments=({shlex.join(self.arguments(name))}) ;;" for i, name in enumerate(names)
        )
        return (
            "#!/usr/bin/env bash\n"
            f"# {self.scaling()}\n"
            "#SBATCH --job-name=resnest_d2\n"
            f"#SBATCH --array=0-{len(names) - 1}\n"
            f"#SBATCH --nodes={self.num_machines}\n"
            "#SBATCH --ntasks-per-node=1\n"
            f"#SBATCH --gpus-per-node={self.num_gpus}\n"
            "#SBATCH --signal=TERM@120\n"
            "#SBATCH --requeue\n"
            f'case "$SLURM_ARRAY_TASK_ID" in\n{cases}\nesac\n'
            'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
            "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # for restarts\n"
            "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100  # seconds of the 120 for the last checkpoint\n"
            f"srun {shlex.quote(sys.executable)} -m torch.distributed.run \\\n"
            f'  --nnodes "$SLURM_NNODES" --nproc-per-node {self.num_gpus} --rdzv-backend c10d \\\n'
            '  --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:$((20000 + SLURM_JOB_ID % 20000))" \\\n'
            f'  {shlex.quote(str(self.script.absolute()))} "${{arguments[@]}}"\n'
        )

    def run(self, name: str) -> Dict[str, Any]:
        """Run a row, unless it is finished.

        Returns:
            Content of its ``results.json``, with the row's name; or the name, ``error`` and ``status``.

        Raises:
            Interrupted: a signal came, and the row has stopped where it can go on from.
            UserError: its folder holds a run of another command.
        """
        folder, command = self.output / name, shlex.join(self.command(name))
        results, noted = folder / RESULTS, folder / "command.txt"
        folder.mkdir(parents=True, exist_ok=True)
        if noted.exists() and noted.read_text().strip() != command:
            raise UserError(f"{noted} is of another command than this; choose another --output")
        noted.write_text(command + "\n")
        if not results.exists():
            status = self._train(name)
            if not results.exists():
                last_words = (folder / "stdout.txt").read_text().splitlines()[-1:]
                return {"row": name, "status": status, "error": "".join(last_words)}
        return {"row": name, **json.loads(results.read_text())}

    def _train(self, name: str) -> int:
        """Run the command of a row, which is told of signals, and to end if this process is killed.

        Returns:
            Its exit status.
        """
        with (self.output / name / "stdout.txt").open("a") as log, noted_signals() as signals:
            process = subprocess.Popen(
                self.command(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(name),
                preexec_fn=end_with_parent,
            )
            handed_on = 0
            while process.poll() is None:
                for number in signals[handed_on:]:
                    handed_on += 1
                    process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.1)
        if signals:
            raise Interrupted(signals[0], "the same command goes on where it was")
        return process.returncode

    def table(self, results: Sequence[Dict[str, Any]]) -> str:
        """:func:`markdown`, with what must be known to read it."""
        note = "\n\nA smoke run of two iterations: its figures say nothing of the detectors."
        return markdown(results) + (note if self.smoke else "")

    def _environment(self, name: str) -> Dict[str, str]:
        """Where the data are. A smoke run makes panoptic annotations where there are none."""
        cfg = model_zoo.get_config(name)
        if not self.smoke or "panoptic" not in cfg.DATASETS.TEST[0]:
            return dict(os.environ)
        try:
            check_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST], "DATASETS")
        except UserError:
            made = self.output / "datasets"
            add_panoptic_of_instances(Path(os.getenv("DETECTRON2_DATASETS", "datasets")), made)
            return {**os.environ, "DETECTRON2_DATASETS": str(made)}
        return dict(os.environ)


def markdown(results: Sequence[Dict[str, Any]]) -> str:
    """A table of what was measured beside the published figures; an en dash is not measured."""
    columns = (
        ("box AP", lambda row: row.box_ap, "bbox", "AP"),
        ("mask AP", lambda row: row.mask_ap, "segm", "AP"),
        ("PQ", lambda row: row.pq, "panoptic_seg", "PQ"),
    )
    rows, titles = [], ["row"]
    for name, *_ in columns:
        titles += [name, "published", "difference"]
    titles += ["s/iter", "GPU memory (MB)", "hours", "device"]
    for result in results:
        cells = [result["row"]]
        for _, published, task, metric in columns:
            ours = result.get("results", {}).get(task, {}).get(metric)
            theirs = published(DETECTORS[result["row"]])
            cells += [ours, theirs, None if None in (ours, theirs) else ours - theirs]
        seconds, done = result.get("wall_seconds"), "results" in result
        cells += [result.get("seconds_per_iteration"), result.get("peak_gpu_memory_mb")]
        cells += [seconds and seconds / 3600, (result["gpu"] or "CPU") if done else None]
        rows.append(cells)
    return tabulate(rows, titles, "github", floatfmt=".2f", missingval="–")
