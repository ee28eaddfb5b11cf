"""The published tables, row by row: commands, results, and a table beside the paper's figures."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from tabulate import tabulate

from .. import model_zoo
from ..data import check_datasets
from ..data.panoptic import add_panoptic_of_instances
from ..data.shapes import datasets_root
from ..errors import UserError, check_number, first_difference, nearest
from ..evaluation.labels import label
from ..evaluation.results import read_results
from ..files import atomic_write_text, check_writable, read_json, read_text, writing
from ..processes import Interrupted
from ..published import CLASSIFIERS, MODELS, SEGMENTORS
from .config import load_config
from .results import FILE as RESULTS
from .signals import end_with_parent, noted_signals

#: The paper's recipes of detection and segmentation are for this many processes, with 2 images each.
_REFERENCE_GPUS = 8
_LOG = "stdout.txt"
_REMEDY = "make room, or choose another --output"
_PATIENCE = 10  # seconds to wait for the end of a process that uses the folder
_MOST_PROCESSES = 100_000  # more are surely a typing error
# A run of seconds that still goes through training, evaluation and every component of the row.
_SMOKE = {
    "SOLVER.MAX_ITER": 2,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "INPUT.MIN_SIZE_TRAIN": "(96,)",
    "INPUT.MIN_SIZE_TEST": 96,
    "MODEL.WEIGHTS": "",
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "TEST.PRECISE_BN.ENABLED": False,
    "TEST.AUG.ENABLED": False,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.DETECTIONS_PER_IMAGE": 20,
}
#: Of semantic segmentation, also its augmented testing.
_SMOKE_SEGMENTOR = {
    **_SMOKE,
    "INPUT.SCALE_CROP.LONG_SIZE": "(64, 128)",
    "INPUT.SCALE_CROP.CROP_SIZE": 96,
    "TEST.AUG.ENABLED": True,
    "TEST.AUG.SCALES": "(1.0,)",
    "TEST.AUG.LONG_SIZE": 96,
    "TEST.AUG.WINDOW": 64,
}
#: Of classification.
_SMOKE_CLASSIFIER = {
    **{key: _SMOKE[key] for key in _SMOKE if key.startswith(("SOLVER.", "DATALOADER.", "MODEL.WEIGHTS"))},
    "SOLVER.WARMUP_ITERS": 1,
    "INPUT.CLASSIFICATION.TRAIN_CROP": 64,
    "INPUT.CLASSIFICATION.TEST_CROP": 64,
}


def select(table: Optional[str], rows: Optional[str], every: bool) -> List[str]:
    """Return the names of the requested rows: those of a table, some by name, or all.

    Raises:
        UserError: nothing was requested, or there is no such row.
    """
    if sum(map(bool, (table, rows, every))) != 1:
        raise UserError("select rows with one of --table, --rows and --all")
    if every:
        return list(MODELS)
    if table:
        chosen = [name for name, row in MODELS.items() if row.table == table]
        if not chosen:
            tables = sorted({row.table for row in MODELS.values() if row.table.isdigit()})
            raise UserError(f"--table {table}: there are only tables {', '.join(tables)}")
        return chosen
    names = list(dict.fromkeys(name.strip() for name in (rows or "").split(",") if name.strip()))
    unknown = [name for name in names if name not in MODELS]
    if unknown or not names:
        first = unknown[0] if unknown else rows
        raise UserError(f"--rows: no row {first!r}; {nearest(first, MODELS)}")
    return names


def released(names: Sequence[str]) -> Tuple[List[str], List[str]]:
    """Divide rows into those whose trained model was released, and the others.

    Raises:
        UserError: there are none of the former.
    """
    found = [name for name in names if MODELS[name].released]
    if not found:
        raise UserError(f"no trained model was released for {', '.join(names)}; train without --eval-only")
    return found, [name for name in names if name not in found]


class Reproduction:
    """Runs rows one after the other, each in its own folder.

    A row whose folder holds ``results.json`` is finished and is not run again; the others resume from their
    last checkpoint.

    Args:
        script: path of ``train_net.py``.
        output: folder of all rows.
        num_gpus: processes per machine; batch size and learning rate follow by the linear rule.
        num_machines: with more than one, the commands work only with Slurm.
        eval_only: evaluate the authors' trained models instead of training.
        smoke: run a few iterations at small size.
        overrides: further KEY VALUE pairs for every row.

    Raises:
        UserError: a number is out of range, or the overrides set a key that is set here.
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
        for option, value in (("--num-gpus", num_gpus), ("--num-machines", num_machines)):
            check_number(option, value, at_least=1, at_most=_MOST_PROCESSES)
        if "OUTPUT_DIR" in overrides[::2]:
            raise UserError("OUTPUT_DIR: every row has a folder of its own; --output names their parent")
        self.script, self.output = Path(script), Path(output)
        self.num_gpus, self.num_machines = num_gpus, num_machines
        self.eval_only, self.smoke, self.overrides = eval_only, smoke, list(overrides)
        self._lock: Optional[int] = None

    @property
    def processes(self) -> int:
        """Processes on all machines."""
        return self.num_gpus * self.num_machines

    def arguments(self, name: str) -> List[str]:
        """The arguments of ``train_net.py`` for a row, except the number of processes."""
        words = ["--config-file", model_zoo.get_config_file(name)]
        words += ["--eval-only"] if self.eval_only else ["--resume"]
        words += ["OUTPUT_DIR", str(self.output / name), "SEED", "1"]
        if self.eval_only and not self.smoke:
            words += ["MODEL.WEIGHTS", model_zoo.get_checkpoint_url(name)]
        elif name not in CLASSIFIERS and self.processes != _REFERENCE_GPUS:  # theirs are in their recipes
            words += ["SOLVER.REFERENCE_WORLD_SIZE", str(_REFERENCE_GPUS)]
        smoke = _smoke(name) if self.smoke else {}
        return [*words, *(str(word) for pair in smoke.items() for word in pair), *self.overrides]

    def command(self, name: str) -> List[str]:
        """The exact command of a row on one machine."""
        return [sys.executable, str(self.script), "--num-gpus", str(self.num_gpus), *self.arguments(name)]

    def scaling(self, names: Sequence[str]) -> str:
        """One line that describes how the recipes of some rows are scaled to the machines."""
        recipes = {
            model_zoo.get_config(name).SOLVER.REFERENCE_WORLD_SIZE if name in CLASSIFIERS else _REFERENCE_GPUS
            for name in names
        }
        return "; ".join(self._scaling(reference) for reference in sorted(recipes))

    def _scaling(self, reference: int) -> str:
        if self.processes == reference:
            return f"{self.processes} processes, as in the recipes"
        return (
            f"{self.processes} process(es) instead of {reference}: batch size and learning rate times "
            f"{self.processes}/{reference}, iterations times {reference}/{self.processes}"
        )

    def slurm(self, names: Sequence[str]) -> str:
        """An sbatch script that runs the rows as a job array, each on ``num_machines`` with torchrun."""
        cases = "\n".join(
            f"  {i}) arguments=({shlex.join(self.arguments(name))}) ;;" for i, name in enumerate(names)
        )
        return (
            "#!/usr/bin/env bash\n"
            f"# {self.scaling(names)}\n"
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

    def check_overrides(self, names: Sequence[str]) -> None:
        """Raise UserError if the overrides do not fit a row. MODEL.DEVICE may be for another machine."""
        pairs = zip(self.overrides[::2], self.overrides[1::2])
        elsewhere = [word for pair in pairs if pair[0] != "MODEL.DEVICE" for word in pair]
        rest = self.overrides[len(self.overrides) // 2 * 2 :]  # a key without a value, to be refused
        for name in names:
            load_config(model_zoo.get_config_file(name), [*elsewhere, *rest])

    def check(self, names: Sequence[str]) -> None:
        """Check, before the first row runs, that all rows can run in their folders.

        Raises:
            UserError: the overrides do not fit, or a folder's content cannot be continued.
        """
        for name in names:
            load_config(model_zoo.get_config_file(name), self.overrides)
            folder = self.output / name
            self._check_command(name)
            for file in (folder / "command.txt", folder / _LOG, folder / RESULTS):
                check_writable(file, _REMEDY)
            self.finished(name)
        for file in (RESULTS, "table.md"):
            check_writable(self.output / file, _REMEDY)
        file = self.output / RESULTS
        rows = read_json(file) if os.path.lexists(file) else []
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "row" in row for row in rows):
            raise UserError(
                f"{file} holds no rows of a reproduction; move it away, or choose another --output"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context in which no other process reproduces into the folder.

        The lock belongs to this process and the training that it starts, and is released when both have
        ended: if this process is killed, its training may still write a checkpoint, which the next waits for.

        Raises:
            UserError: another process still holds the lock after some seconds, or the folder cannot be made.
        """
        with writing(self.output, _REMEDY):
            self.output.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.output, os.O_RDONLY | os.O_DIRECTORY)
        try:
            end = time.monotonic() + _PATIENCE
            while not _try_lock(self._lock):
                if time.monotonic() > end:
                    raise UserError(
                        f"another process still reproduces into {self.output}, or its training writes a last "
                        "checkpoint; wait for its end, or choose another --output"
                    )
                time.sleep(0.1)
            yield
        finally:
            os.close(self._lock)
            self._lock = None

    def finished(self, name: str) -> Optional[Dict[str, Any]]:
        """Content of a row's ``results.json``, with the row's name; None if the row is not finished.

        A file with an ``error`` comes from a run whose evaluation failed; the row is not finished.

        Raises:
            UserError: the file is damaged.
        """
        file = self.output / name / RESULTS
        if not os.path.lexists(file):
            return None
        try:
            content = read_results(file)
        except UserError as e:
            raise UserError(f"{e}; remove it to resume the row from its last checkpoint") from None
        return None if "error" in content else {"row": name, **content}

    def run(self, name: str) -> Dict[str, Any]:
        """Run a row, unless it is finished.

        Returns:
            Content of its ``results.json``, with the row's name; or the name, ``error`` and ``status``.

        Raises:
            Interrupted: after a signal; the row has stopped and can be resumed.
            UserError: its folder holds a run of another command, or damaged results, or cannot be written to.
        """
        folder = self.output / name
        if not self._check_command(name):
            atomic_write_text(folder / "command.txt", shlex.join(self.command(name)) + "\n")
        status = 0 if self.finished(name) else self._train(name)
        return self.finished(name) or {"row": name, "status": status, "error": _last_words(folder / _LOG)}

    def write(self, results: Sequence[Dict[str, Any]]) -> None:
        """Write the results of rows, and their table.

        Raises:
            UserError: they cannot be written; existing files are unchanged.
        """
        atomic_write_text(self.output / RESULTS, json.dumps(results, indent=1))
        atomic_write_text(self.output / "table.md", self.table(results) + "\n")

    def _check_command(self, name: str) -> bool:
        """Whether a row's folder records this command. Earlier versions left an empty file when killed.

        Raises:
            UserError: it records another command, or none; the message names the first word that differs.
        """
        noted = self.output / name / "command.txt"
        if not os.path.lexists(noted):
            return False
        text = read_text(noted)
        try:
            there = shlex.split(text)
        except ValueError as e:
            raise UserError(
                f"{noted} holds no command ({e}); remove it if the folder is this row's, or choose another "
                "--output"
            ) from None
        if there and (pair := first_difference(there, self.command(name))):
            says, here = ("nothing more" if word is None else repr(label(word, 300)) for word in pair)
            raise UserError(
                f"{noted} is of another command: it has {says} where this one has {here}; choose another "
                "--output"
            )
        return bool(there)

    def _train(self, name: str) -> int:
        """Run a row's command, passing on signals. It is told to end if this process is killed.

        Returns:
            Its exit status.
        """
        file = self.output / name / _LOG
        with writing(file, _REMEDY):
            environment = self._environment(name)
            log = check_writable(file, _REMEDY).open("ab")
        with log, noted_signals() as signals:
            process = subprocess.Popen(
                self.command(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=end_with_parent,
                pass_fds=() if self._lock is None else (self._lock,),  # holds the lock until it ends
            )
            handed_on = 0
            while process.poll() is None:
                for number in signals[handed_on:]:
                    handed_on += 1
                    process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.1)
        if signals:
            raise Interrupted(signals[0], "the same command continues where it left off")
        return process.returncode

    def table(self, results: Sequence[Dict[str, Any]]) -> str:
        """:func:`markdown`, with a note if the figures are those of a smoke run."""
        note = "\n\nA smoke run of two iterations: its figures say nothing about the models."
        return markdown(results) + (note if self.smoke else "")

    def _environment(self, name: str) -> Dict[str, str]:
        """Environment that says where the data are. A smoke run makes missing panoptic annotations."""
        cfg = model_zoo.get_config(name)
        if not self.smoke or "panoptic" not in cfg.DATASETS.TEST[0]:
            return dict(os.environ)
        try:
            check_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST], "DATASETS")
        except UserError:
            made = self.output / "datasets"
            add_panoptic_of_instances(datasets_root(), made)
            return {**os.environ, "DETECTRON2_DATASETS": str(made)}
        return dict(os.environ)


def _smoke(name: str) -> Dict[str, Any]:
    """Return the settings of a smoke run of a row."""
    return _SMOKE_CLASSIFIER if name in CLASSIFIERS else _SMOKE_SEGMENTOR if name in SEGMENTORS else _SMOKE


def _try_lock(handle: int) -> bool:
    """Try to lock the folder; False if another process has. Some network file systems have no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _last_words(log: Path) -> str:
    """The last line that a process has written."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 8192, 0))
        lines = file.read().decode("utf-8", "replace").split("\n")
    return next((label(line, 500) for line in reversed(lines) if line.strip()), "it wrote no message")


def markdown(results: Sequence[Dict[str, Any]]) -> str:
    """A table of the results beside the published figures; an en dash means not measured."""
    columns = (
        ("box AP", "box_ap", "bbox", "AP"),
        ("mask AP", "mask_ap", "segm", "AP"),
        ("PQ", "pq", "panoptic_seg", "PQ"),
        ("mIoU", "miou", "sem_seg_TTA", "mIoU"),
        ("pixel accuracy", "pixel_accuracy", "sem_seg_TTA", "pACC"),
        ("top-1", "top1", "classification", "top1"),
    )
    # Only what the rows are measured by.
    chosen = [MODELS[result["row"]] for result in results]
    columns = [c for c in columns if any(getattr(row, c[1], None) is not None for row in chosen)]
    rows, titles = [], ["row"]
    for name, *_ in columns:
        titles += [name, "published", "difference"]
    titles += ["s/iter", "GPU memory (MB)", "hours", "device"]
    for result in results:
        cells = [result["row"]]
        for _, published, task, metric in columns:
            ours = result.get("results", {}).get(task, {}).get(metric)
            theirs = getattr(MODELS[result["row"]], published, None)
            cells += [ours, theirs, None if None in (ours, theirs) else ours - theirs]
        seconds, done = result.get("wall_seconds"), "results" in result
        cells += [result.get("seconds_per_iteration"), result.get("peak_gpu_memory_mb")]
        gpu = label(result["gpu"] or "CPU").replace("|", "/") if done else None
        cells += [seconds and seconds / 3600, gpu]
        rows.append(cells)
    return tabulate(rows, titles, "github", floatfmt=".2f", missingval="–")
