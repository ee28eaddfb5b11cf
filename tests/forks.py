"""Python programs in forked copies of one process that has everything imported, since imports cost seconds.

The process is multiprocessing's fork server: a new interpreter that has imported modules and done nothing else,
so a copy of it is what a program sees after its imports. It differs from an interpreter that a user starts in
what is imported, in its parent, and in that functions of ``atexit`` are not called.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Dict, Mapping, Optional, Sequence, Tuple

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("resnest_d2.engine", "resnest_d2.data.panoptic", "resnest_d2.evaluation.report"),
        *("resnest_d2.engine.reproduce", "torch.utils.tensorboard", "torch._dynamo", "faster_coco_eval"),
        # What is imported where it is used: for charts, and by torch.utils.cpp_extension and numpy.isin.
        *("resnest_d2.evaluation.report.charts", "resnest_d2.evaluation.report.gallery", "tidecv"),
        *("setuptools", "numpy.ma"),
        # The last, by its name from this folder or from the one above.
        *("frozen", "tests.frozen"),
    ]
)
_DATASETS = "DETECTRON2_DATASETS"
# Starting a process also asks after all others, which two threads must not do at once.
_LOCK = threading.Lock()


def warm_up() -> None:
    """Start the process that is copied, which imports while this one does something else."""
    forkserver.ensure_running()


class Process:
    """A program, in a session of its own, with the methods of :class:`subprocess.Popen` that tests need."""

    def __init__(
        self, words: Sequence[str], out: Path, err: Path, cwd: Path, environment: Mapping[str, str]
    ) -> None:
        self.words, self._files = [str(word) for word in words], (out, err)
        arguments = (self.words, str(out), str(err), str(cwd), dict(environment))
        # A daemon, so that what a failed test leaves behind does not outlive the tests.
        self._process = _CONTEXT.Process(target=_run, args=arguments, daemon=True)
        with _LOCK:
            self._process.start()
        self.pid, self.sentinel = self._process.pid, self._process.sentinel
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            while os.getsid(self.pid) != self.pid:
                time.sleep(0.001)

    def poll(self) -> Optional[int]:
        with _LOCK:
            return self._process.exitcode

    @property
    def returncode(self) -> Optional[int]:
        return self.poll()

    def wait(self, timeout: Optional[float] = None) -> int:
        connection.wait([self.sentinel], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self.words, timeout)
        return status

    def communicate(self, timeout: Optional[float] = None) -> Tuple[str, ...]:
        """What it wrote to stdout and to stderr."""
        self.wait(timeout)
        return tuple(file.read_text(errors="replace") for file in self._files)

    def kill(self) -> None:
        """End it and all in its session's first process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


def start(
    words: Sequence[object],
    out: Path,
    err: Optional[Path] = None,
    *,
    cwd: Path,
    environment: Optional[Mapping[str, str]] = None,
) -> Process:
    """Start ``python *words``, where words begin with a file of Python, ``-c`` or ``-m``.

    Args:
        out, err: files to append stdout and stderr to; both to the first where there is one.
        environment: in place of this process's. Of what libraries read when they are imported, the number of
            threads and the folder of the datasets are set.
    """
    return Process(words, out, err or out, cwd, os.environ if environment is None else environment)


def run(
    words: Sequence[object], *, cwd: Path, environment: Dict[str, str], timeout: float
) -> subprocess.CompletedProcess:
    """The same, waited for."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(words, Path(folder, "out"), Path(folder, "err"), cwd=cwd, environment=environment)
        try:
            out, err = process.communicate(timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.words, process.returncode, out, err)


def _run(words: Sequence[str], out: str, err: str, cwd: str, environment: Dict[str, str]) -> None:
    os.setsid()
    for name, number in ((out, 1), (err, 2)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    # Children of its own, which start as they would from a new interpreter.
    multiprocessing.current_process().daemon = False
    multiprocessing.set_start_method(None, force=True)
    if "OMP_NUM_THREADS" in environment:
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    elsewhere = environment.get(_DATASETS) != os.environ.get(_DATASETS)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if elsewhere:
        _register_datasets()
    first, *rest = words
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")


def _register_datasets() -> None:
    """As detectron2 and this package do when they are imported."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import builtin

    from resnest_d2.data import register_shapes

    DatasetCatalog.clear()
    MetadataCatalog.clear()
    importlib.reload(builtin)
    register_shapes()
