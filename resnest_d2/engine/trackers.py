"""Experiment trackers: a training's metrics, configuration and results at Weights & Biases or MLflow."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import posixpath
import re
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..config import flatten
from ..errors import OptionError, UserError, needs, one_line
from ..files import atomic_write_text, read_json
from .results import FILE as RESULTS

logger = logging.getLogger(__name__)

#: File in OUTPUT_DIR with the run's name at the service, under which a resumed training goes on.
FILE = "tracker.json"
#: Value of TRACKER.SERVICE for none.
NONE = "none"
#: Value of TRACKER.RUN for the name of OUTPUT_DIR.
AUTO = "auto"
#: Seconds until the next attempt after a failed one, which may itself take a minute.
_PAUSE = 600


class _Service(ABC):
    """A run at a service. Whatever goes wrong there, its methods raise.

    Attributes:
        id: the run's name at the service.
        remedy: what a user can do if no run can be started.
    """

    id: str
    remedy: str

    @abstractmethod
    def __init__(self, cfg: CfgNode, name: str, known: Optional[str]) -> None:
        """Start a run, or go on with the ``known`` one.

        Args:
            name: of a new run, for people.
        """

    @abstractmethod
    def log(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Add the scalars of an iteration."""

    @abstractmethod
    def finish(self, results: Optional[Dict[str, Any]]) -> None:
        """End the run.

        Args:
            results: content of ``results.json``; None if the training has not reached its end.
        """


class _WeightsAndBiases(_Service):
    remedy = "log in with wandb login, or set WANDB_MODE=offline"

    def __init__(self, cfg: CfgNode, name: str, known: Optional[str]) -> None:
        import wandb

        self._run = wandb.init(
            project=cfg.TRACKER.PROJECT,
            name=name,
            id=known,
            resume="allow" if known else None,
            dir=cfg.OUTPUT_DIR,
            settings=wandb.Settings(console="off"),  # log.txt has the output
        )
        self.id = self._run.id
        # A resumed training may differ in some keys.
        self._run.config.update(yaml.safe_load(cfg.dump()), allow_val_change=True)
        # By its own steps, the service would drop what a resumed training repeats since its checkpoint.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def log(self, iteration: int, scalars: Mapping[str, float]) -> None:
        self._run.log({**scalars, "iteration": iteration})

    def finish(self, results: Optional[Dict[str, Any]]) -> None:
        if results is not None:
            self._run.summary.update({"results": results["results"]})
        self._run.finish(exit_code=int(results is None))


class _MLflow(_Service):
    remedy = "set MLFLOW_TRACKING_URI to a server or a database"
    # Of a batch, and of a value in characters, in all versions.
    _MOST_PARAMETERS, _MOST_METRICS, _LONGEST = 100, 1000, 500

    def __init__(self, cfg: CfgNode, name: str, known: Optional[str]) -> None:
        # Its defaults let a training wait many minutes for a server that is down.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        if known:
            self.id = self._client.get_run(known).info.run_id
            self._client.update_run(self.id, status="RUNNING")
        else:
            project = cfg.TRACKER.PROJECT
            experiment = self._client.get_experiment_by_name(project)
            place = experiment.experiment_id if experiment else self._client.create_experiment(project)
            self.id = self._client.create_run(place, run_name=name).info.run_id
            # They cannot be changed later, so the configuration of a resumed training is in the file only.
            values = [Param(key, str(value)[: self._LONGEST]) for key, value in flatten(cfg)]
            for start in range(0, len(values), self._MOST_PARAMETERS):
                self._client.log_batch(self.id, params=values[start : start + self._MOST_PARAMETERS])
        self._client.log_text(self.id, cfg.dump(), "config.yaml")

    def log(self, iteration: int, scalars: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(_allowed(name), value, now, iteration) for name, value in scalars.items()]
        for start in range(0, len(metrics), self._MOST_METRICS):
            self._client.log_batch(self.id, metrics=metrics[start : start + self._MOST_METRICS])

    def finish(self, results: Optional[Dict[str, Any]]) -> None:
        if results is not None:
            self._client.log_dict(self.id, results, RESULTS)
        self._client.set_terminated(self.id, status="FAILED" if results is None else "FINISHED")


def _allowed(name: str) -> str:
    """Return a metric's name as MLflow takes it; those of classes may hold anything. They stay different."""
    allowed = posixpath.normpath(re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)).strip("./")[:240] or "_"
    return allowed if allowed == name else f"{allowed}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


#: Values of TRACKER.SERVICE, which are the names of packages, too.
SERVICES = {"wandb": _WeightsAndBiases, "mlflow": _MLflow}


def check_tracker(cfg: CfgNode) -> None:
    """Raise UserError if the package of TRACKER.SERVICE is missing, or the project or the run has no name."""
    tracker = cfg.TRACKER
    if tracker.SERVICE == NONE:
        return
    for key in ("PROJECT", "RUN"):
        if not tracker[key].strip():
            rule = f"must be a name with TRACKER.SERVICE {tracker.SERVICE}"
            raise OptionError(f"TRACKER.{key}", tracker[key], rule)
    with needs(tracker.SERVICE, f"TRACKER.SERVICE {tracker.SERVICE}"):
        importlib.import_module(tracker.SERVICE)


class TrackerWriter(EventWriter):
    """Sends all scalars, the configuration and the results to TRACKER.SERVICE, from the main process.

    What fails once the training runs is logged once and stops nothing. What could not be sent is kept, and
    sent when the service answers again.

    Args:
        cfg: the run's configuration.
        max_iter: iterations after which the training is complete.
        window: number of values of which the median is sent, of scalars that are smoothed.
    """

    def __init__(self, cfg: CfgNode, max_iter: int, window: int = 20) -> None:
        self._cfg, self._max_iter, self._window = cfg, max_iter, window
        self._service: Optional[_Service] = None
        self._held: List[Tuple[int, Dict[str, float]]] = []
        self._last, self._next_attempt = -1, 0.0
        self._begun = self._warned = False
        self._started = 0.0

    def start(self) -> None:
        """Start the run, or go on with that of the training that is resumed.

        Raises:
            UserError: a new run cannot be started.
        """
        known = self._known()
        try:
            self._open(known)
        except UserError:
            raise
        except Exception as e:  # the packages raise anything
            if known is None:
                name = self._cfg.TRACKER.SERVICE
                raise UserError(
                    f"TRACKER.SERVICE {name} cannot start a run ({_reason(e)}); {SERVICES[name].remedy}, or "
                    f"leave TRACKER.SERVICE {NONE}"
                ) from None
            self._fail(e)
        self._begun, self._started = True, time.time()

    def _known(self) -> Optional[str]:
        """The run of the training that is resumed; None for a new one, or if it was tracked elsewhere."""
        file = Path(self._cfg.OUTPUT_DIR, FILE)
        content = read_json(file) if file.exists() else None
        if not isinstance(content, dict) or any(content.get(k) != v for k, v in self._place().items()):
            return None
        return str(content.get("run"))

    def _place(self) -> Dict[str, str]:
        return {"service": self._cfg.TRACKER.SERVICE, "project": self._cfg.TRACKER.PROJECT}

    def _open(self, known: Optional[str]) -> None:
        tracker, folder = self._cfg.TRACKER, os.path.abspath(self._cfg.OUTPUT_DIR)
        name = os.path.basename(folder) if tracker.RUN == AUTO else tracker.RUN
        self._service = SERVICES[tracker.SERVICE](self._cfg, name, known)
        atomic_write_text(Path(folder, FILE), json.dumps({**self._place(), "run": self._service.id}) + "\n")

    def write(self) -> None:
        if not self._begun:
            return
        new: Dict[int, Dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window)
        for name, (value, iteration) in latest.items():
            if iteration > self._last:
                new[iteration][name] = value
        self._last = max([self._last, *new])
        self._held += sorted(new.items())
        if time.monotonic() >= self._next_attempt:
            self._send()

    def close(self) -> None:
        if self._begun and self._send():
            try:
                self._service.finish(self._results())
            except Exception as e:
                self._fail(e)
        elif self._begun:
            logger.warning("TRACKER: metrics of %d iterations could not be sent", len(self._held))
        self._begun = False

    def _results(self) -> Optional[Dict[str, Any]]:
        """The results of this training; None if it has not reached its end, or its evaluation failed."""
        file = Path(self._cfg.OUTPUT_DIR, RESULTS)
        if get_event_storage().iter < self._max_iter or not file.exists():
            return None
        content = read_json(file)
        stale = "error" in content or content.get("iterations") != self._max_iter
        return None if stale or file.stat().st_mtime < self._started else content

    def _send(self) -> bool:
        """Send what is held, and return whether it has arrived."""
        try:
            if self._service is None:
                self._open(self._known())
            while self._held:
                self._service.log(*self._held[0])
                del self._held[0]
        except Exception as e:
            self._fail(e)
        return not self._held and self._service is not None

    def _fail(self, error: Exception) -> None:
        self._next_attempt = time.monotonic() + _PAUSE
        if not self._warned:
            logger.warning(
                "TRACKER.SERVICE %s has failed (%s); training goes on, and metrics are kept and sent later",
                self._cfg.TRACKER.SERVICE,
                _reason(error),
            )
        self._warned = True


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 300)}"
