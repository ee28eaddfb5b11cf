"""detectron2's checkpointer for weights of any known format, and for checkpoints that survive a kill."""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import stat
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple
from urllib.parse import parse_qs

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts, convert_c2_detectron_names

from ..errors import UserError, one_line
from ..files import atomic_write_text, atomic_writer, read_text
from ..processes import found_by_main
from .convert import as_checkpoint, bare
from .coverage import Coverage, cover
from .links import fetched, is_link
from .numbers import check_checkpoint, check_numbers, check_types, wrong_numbers
from .read import WeightsError, read_checkpoint, read_weights

logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"model_(\d{7,})\.pth")
#: More than any file of weights has. The log lists those that the model has no place for.
_MAX_TENSORS = 20_000


class Checkpointer(DetectionCheckpointer):
    """Loads checkpoints of any detectron2 model, and ResNeSt weights in the formats of :func:`convert`.

    A checkpoint appears complete or not at all. Training resumes from the newest one that is undamaged: the
    one that ``last_checkpoint`` names, which users edit to go back, or else the one of the highest iteration.

    Args:
        keep: how many numbered checkpoints stay; 0 for all. ``model_final`` always stays.
        run: name of this training, which its checkpoints hold. A resumed training keeps its first name.
        arguments, keywords: of detectron2's checkpointer.

    Attributes:
        file: the file that was loaded last.
        missing_keys: the model's parameters and buffers that this file held nothing for.
        unexpected_keys: names in this file that the model has no place for.
        check: called with the coverage once the weights are in the model, before the rest of the file is
            loaded; raises UserError where the weights do not fit well enough.
    """

    file = ""
    missing_keys: List[str] = []
    unexpected_keys: List[str] = []
    check: Optional[Callable[[Coverage], None]] = None

    def __init__(self, *arguments: Any, keep: int = 0, run: str = "", **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._keep, self._run = keep, run
        self._oddities: Optional[Dict[str, str]] = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth``, then remove the oldest numbered checkpoints beyond ``keep``.

        Raises:
            UserError: it cannot be written. Whatever was there still is.
            WeightsError: the weights hold numbers that no trained network has.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), "run": self._run, **kwargs}
        data.update({key: thing.state_dict() for key, thing in self.checkpointables.items()})
        path = self._folder() / f"{name}.pth"
        own = self._own_oddities()
        for key, reason in wrong_numbers(self.model.state_dict()).items():
            if key not in own:
                remedy = "lower SOLVER.BASE_LR; earlier checkpoints are untouched, --resume continues"
                raise WeightsError(path, f"is not written: {key} {reason}", remedy)
        for stale in self._folder().glob(".model_*.pth-*"):  # left by a process that was killed
            _remove(stale)
        logger.info("Saving checkpoint to %s", path)
        remedy = "earlier checkpoints are untouched: make room and continue with --resume"
        # `last_checkpoint` is written first. A process killed in between leaves the name of a missing file,
        # which resuming ignores. The other way round, it would leave the name of an older checkpoint.
        with atomic_writer(path, before=lambda: self.tag_last_checkpoint(path.name), remedy=remedy) as file:
            torch.save(data, file)
        if self._keep:
            later = self.later_than(kwargs.get("iteration", math.inf))
            numbered = [p for p in self._found().values() if _NUMBERED.fullmatch(p.name) and p.is_file()]
            for old in sorted(set(numbered) - set(later), key=_iteration)[: -self._keep]:
                _remove(old)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which checkpoint is the newest, in ``last_checkpoint``."""
        atomic_write_text(self._folder() / "last_checkpoint", last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint in the folder, damaged or not; the same in all processes."""
        return found_by_main(self.holds_any)

    def holds_any(self) -> bool:
        """Whether this process sees a checkpoint in the folder, damaged or not."""
        return next(self._checkpoints(), None) is not None

    def is_newest(self, *names: str) -> bool:
        """Whether the newest checkpoint has one of ``names``."""
        newest = next(self._checkpoints(), None)
        return newest is not None and newest.stem in names

    def later_than(self, iteration: float) -> List[Path]:
        """Checkpoints of later iterations, which a user who went back by ``last_checkpoint`` has left.

        Files of unknown iteration are taken for the user's own, except ``model_final``.
        """
        known = ((path, _iteration(path)) for path in self._checkpoints())
        return [p for p, i in known if i > iteration and (i < math.inf or p.stem == "model_final")]

    def get_checkpoint_file(self) -> str:
        """The newest checkpoint that is undamaged; the same in all processes.

        Raises:
            UserError: all are damaged, and training must not start from scratch unnoticed; or the newest
                intact file was not written by a training in this folder.
        """
        return found_by_main(lambda: str(self._newest_undamaged()))

    def _newest_undamaged(self) -> Path:
        damaged = []
        passed_over = self._noted(self._found())[1]
        for path in self._checkpoints():
            try:
                content = read_checkpoint(path)
                check_checkpoint(content, str(path), self._own_oddities())
            except WeightsError as e:
                logger.warning("Skipping %s: it %s", path, e.reason)
                damaged.append(f"{path.name} {e.reason}")
            else:
                self._check_state(path, content)
                self._run = _run(content) or self._run
                if passed_over:
                    logger.warning("--resume continues from %s: %s", path.name, passed_over)
                return path
        raise UserError(
            f"--resume: no checkpoint in {self.save_dir} can be read: {', '.join(damaged)}; restore one, "
            "or start anew in another OUTPUT_DIR"
        )

    def _check_state(self, path: Path, content: Mapping[str, Any]) -> None:
        """Raise UserError unless a training wrote this file under this name."""
        number, reason = _NUMBERED.fullmatch(path.name), ""
        absent = [key for key in ("model", "iteration", *self.checkpointables) if key not in content]
        states = [s for s in (content, content.get("trainer")) if isinstance(s, Mapping)]
        iterations = [state["iteration"] for state in states if "iteration" in state]
        wrong = [i for i in iterations if type(i) is not int or not 0 <= i < 1 << 63]
        if absent:
            reason = f"it holds no {absent[0]!r}; is it a file of weights?"
        elif wrong:  # a number may have more digits than Python prints
            shown = repr(wrong[0])[:40] if isinstance(wrong[0], str) else f"a {type(wrong[0]).__name__}"
            reason = "its iteration is " + ("none of a training" if type(wrong[0]) is int else shown)
        elif number and int(number[1]) != content["iteration"]:
            reason = f"it is of iteration {content['iteration']}"
        elif _run(content):
            others = ((other, _run(_head(other))) for other in self._checkpoints() if other != path)
            other, run = next(((other, run) for other, run in others if run), (path, _run(content)))
            if run != _run(content):
                reason = f"it is of another run than {other.name}"
        if reason:
            raise UserError(
                f"--resume: {path} is no checkpoint that a training wrote there ({reason}); move it away, or "
                "name another in last_checkpoint"
            )

    def load(self, path: str, checkpointables: Optional[List[str]] = None) -> Dict[str, Any]:
        """As detectron2's, except that links are cached by host and fetched with a time limit.

        Raises:
            UserError: the file's training state does not fit this training, or a link cannot be fetched.
        """
        self._own_oddities()  # looked for before anything is loaded
        if path and is_link(path):
            link, mark, query = path.partition("?")
            file = fetched(path)
            date = time.strftime("%Y-%m-%d", time.localtime(file.stat().st_mtime))
            logger.info("%s was fetched on %s; remove %s to fetch it anew", link, date, file)
            path = f"{file}{mark}{query}"
        try:
            return super().load(path, checkpointables)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
            if checkpointables is not None:
                raise
            raise UserError(
                f"--resume: the state of the training in {path} does not fit this one "
                f"({type(e).__name__}: {one_line(e, 200)}); name another in last_checkpoint, "
                "or start anew without --resume"
            ) from None

    def _own_oddities(self) -> Dict[str, str]:
        """Tensors that hold numbers no trained network has from the start, and what these are.

        The start is when a checkpoint is first loaded, saved or looked for.
        """
        if self._oddities is None:
            self._oddities = wrong_numbers(self.model.state_dict())
        return self._oddities

    def _folder(self) -> Path:
        return Path(self.path_manager.get_local_path(self.save_dir))

    def _found(self) -> Dict[str, Path]:
        """All files with a checkpoint's suffix, by name."""
        if not self.save_dir or not self.path_manager.isdir(self.save_dir):
            return {}
        folder = self._folder()
        try:
            return {name: folder / name for name in os.listdir(folder) if name.endswith(".pth")}
        except OSError as e:
            raise UserError(f"cannot read OUTPUT_DIR {folder} ({e.strerror})") from None

    def _checkpoints(self) -> Iterator[Path]:
        """Newest first: the one that ``last_checkpoint`` names, then by iteration."""
        found = self._found()
        noted, _ = self._noted(found)
        if noted:
            yield found.pop(noted)
        others = [path for name, path in found.items() if name.startswith("model_")]
        # By name, too: model_final is later than the numbered one of its iteration.
        yield from sorted(others, key=lambda path: (_iteration(path), path.name), reverse=True)

    def _noted(self, found: Dict[str, Path]) -> Tuple[str, str]:
        """The file that ``last_checkpoint`` names, or where it names none, why not."""
        file = self._folder() / "last_checkpoint" if found else Path()
        if not found or not os.path.lexists(file):
            return "", ""
        try:
            text = read_text(file).strip()
        except UserError as e:
            return "", str(e)
        for name, path in found.items():
            if text in (name, str(path)):
                return name, ""
        return "", f"{file} names {text[:100]!r}, which is not there"

    def _load_file(self, filename: str) -> Dict[str, Any]:
        """The content of a file. detectron2 would go by its suffix; here the content decides."""
        own = self.model.state_dict()
        loaded = as_checkpoint(read_weights(filename), filename, own)
        given = self._parsed_url_during_load
        query = parse_qs(given.query) if given else {}
        if query.pop("matching_heuristics", ["False"]) == ["True"]:
            loaded["matching_heuristics"] = True
        if query:
            raise UserError(f"{filename}?{'&'.join(query)}: the only query is matching_heuristics=True")
        if len(loaded["model"]) > _MAX_TENSORS:
            raise UserError(f"{filename} is not a weight file: it holds {len(loaded['model'])} tensors")
        for name, value in loaded["model"].items():
            if not isinstance(name, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
                remedy = "; save it on its own with torch.save, if it is what you mean"
                raise UserError(
                    f"{filename} is not a weight file: {str(name)[:80]} is a {type(value).__name__}"
                    f"{remedy if isinstance(value, dict) else ''}"
                )
        loaded["model"] = bare(loaded["model"], own)
        self._convert_ndarray_to_tensor(loaded["model"])
        for name, value in loaded["model"].items():
            if value.is_complex():
                raise UserError(f"{filename} is not a weight file: {name} holds complex numbers")
        check_types(loaded["model"], filename)
        self.file = f"{given.geturl()} ({filename})" if given and given.scheme else filename
        return loaded

    def _load_model(self, checkpoint: Dict[str, Any]) -> Any:
        weights = dict(checkpoint["model"])
        try:
            if checkpoint.pop("matching_heuristics", False):
                checkpoint["model"] = self._matched(weights, checkpoint.get("__author__") == "Caffe2")
            incompatible = super()._load_model(checkpoint)
        except (AssertionError, LookupError, ValueError, RuntimeError) as e:  # detectron2's matching of names
            if isinstance(e, (UserError, torch.OutOfMemoryError)):
                raise
            reason = one_line(e, 200)
            raise UserError(f"{self.file} does not fit the model ({type(e).__name__}: {reason})") from None
        misshapen = [k for k, *_ in incompatible.incorrect_shapes]
        self.missing_keys = list(dict.fromkeys([*incompatible.missing_keys, *misshapen]))
        self.unexpected_keys = [*incompatible.unexpected_keys, *misshapen]
        if self.check is not None:
            self.check(cover(self.model, self.file, weights, self.missing_keys, self.unexpected_keys))
        check_numbers(self.model.state_dict(), self.file, self._own_oddities())
        return incompatible

    def _matched(self, weights: Dict[str, torch.Tensor], are_caffe2: bool) -> Dict[str, torch.Tensor]:
        """Weights under the model's names, by detectron2's heuristics: these end in the file's names."""
        if are_caffe2:
            weights, _ = convert_c2_detectron_names(weights)
        own = self.model.state_dict()
        ends = {key.split(".", parts)[-1] for key in own for parts in range(key.count(".") + 1)}
        # The heuristics compare every name with every name of the model: leave out those that cannot match.
        candidates = {key: value for key, value in weights.items() if key in ends}
        others = {key: value for key, value in weights.items() if key not in ends}
        if candidates:
            candidates = align_and_update_state_dicts(own, candidates, c2_conversion=False)
        return {**candidates, **others}


def _iteration(path: Path) -> float:
    """A checkpoint's iteration, from its name or else its content; infinite where neither tells."""
    number = _NUMBERED.fullmatch(path.name)
    if number:
        return int(number[1])
    iteration = _head(path).get("iteration")
    return iteration if isinstance(iteration, int) else math.inf


def _head(path: Path) -> Mapping[str, Any]:
    """The iteration and the run of a checkpoint; nothing where it cannot be read."""
    try:
        status = os.stat(path)
        return _head_of(path, status.st_mtime_ns, status.st_size) if stat.S_ISREG(status.st_mode) else {}
    except OSError:
        return {}


@functools.lru_cache(maxsize=16)  # model_final's is asked for whenever a checkpoint is written
def _head_of(path: Path, *version: int) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # reads no tensor
        return {key: content.get(key) for key in ("iteration", "run")}
    except Exception:  # damaged bytes make it raise anything
        return {}


def _run(content: Mapping[str, Any]) -> str:
    """The name of the training that wrote a checkpoint; empty in files of others and of earlier versions."""
    run = content.get("run")
    return run if isinstance(run, str) else ""


def _remove(path: Path) -> None:
    """Remove a file; where that is impossible, training goes on."""
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        logger.warning("Cannot remove %s (%s)", path, e.strerror)
