"""Trainings that Weights & Biases or MLflow follow. Neither is installed; stand_ins/ records what they are told."""

import json
import logging
import re
import sys
from pathlib import Path

import pytest
from detectron2.utils.events import EventStorage
from robust import tiny
from support import ROOT, assert_one_line_error

from resnest_d2 import UserError
from resnest_d2.config import default_config
from resnest_d2.engine import trackers

STAND_INS = ROOT / "tests/stand_ins"
SETTINGS = ("TEST.EVAL_PERIOD", 0, "SOLVER.CHECKPOINT_PERIOD", 100)


def calls(file, what=None):
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [call for call in found if what in (None, call["what"])]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def train(data, run_python, tmp_path):
    """train(service, iterations, *flags, fails=...): a training of a small classifier, and what the service got."""

    def run(service, iterations, *flags, fails="", tool=STAND_INS / "train.py"):
        words = tiny.command(data, tmp_path / "out", iterations, *SETTINGS, flags=flags)[1:]
        environment = {"TRACKER_CALLS": tmp_path / "calls", "TRACKER_FAILS": fails, **tiny.environment()}
        (tmp_path / "calls").unlink(missing_ok=True)
        result = run_python(tool, *words, "TRACKER.SERVICE", service, env=environment)
        return result, tmp_path / "calls"

    return run


def test_weights_and_biases_gets_metrics_configuration_and_results_and_a_resumed_run_goes_on(train, tmp_path):
    result, file = train("wandb", 21)
    assert result.returncode == 0, result.stderr[-3000:]
    (begun,) = calls(file, "init")
    assert (begun["project"], begun["name"], begun["id"], begun["resume"]) == (
        "resnest_d2",
        "out",
        None,
        None,
    )
    (config,) = calls(file, "config")
    assert config["values"]["SOLVER"]["MAX_ITER"] == 21
    # Every 20 iterations and at the end, as metrics.json has them; the median of 20 values.
    sent = {call["values"]["iteration"]: call["values"] for call in calls(file, "log")}
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.json").read_text().splitlines()]
    assert sent == {line["iteration"]: line for line in lines} and {19, 20} < sent.keys()
    assert {"total_loss", "lr", "classification/top1"} <= {key for values in sent.values() for key in values}
    (summary,) = calls(file, "summary")
    assert summary["values"]["results"] == json.loads((tmp_path / "out/results.json").read_text())["results"]
    assert calls(file)[-1]["what"] == "finish" and calls(file)[-1]["exit_code"] == 0

    result, file = train("wandb", 23, "--resume")
    assert result.returncode == 0, result.stderr[-3000:]
    (begun,) = calls(file, "init")
    assert (begun["id"], begun["resume"]) == ("run1", "allow")
    assert calls(file, "config")[0]["allow_val_change"]  # as MAX_ITER has
    assert min(call["values"]["iteration"] for call in calls(file, "log")) > 20

    _, file = train("wandb", 1)
    assert calls(file, "init")[0]["id"] is None  # another training in the folder


def test_mlflow_gets_metrics_configuration_and_results(train, tmp_path):
    result, file = train("mlflow", 21)
    assert result.returncode == 0, result.stderr[-3000:]
    assert calls(file, "create_experiment")[0]["name"] == "resnest_d2"
    assert calls(file, "create_run")[0]["run_name"] == "out"
    params = {key: value for call in calls(file, "log") for key, value in call["params"].items()}
    assert params["SOLVER.MAX_ITER"] == "21" and params["MODEL.RESNETS.RADIX"] == "2" and len(params) > 200
    sent = {(name, step): value for call in calls(file, "log") for name, value, step in call["metrics"]}
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.json").read_text().splitlines()]
    for line in lines:
        step = line.pop("iteration")
        assert {name: sent[name, step] for name in line} == line
    assert [call["file"] for call in calls(file) if "file" in call] == ["config.yaml", "results.json"]
    assert calls(file)[-1] == {
        "service": "mlflow", "what": "set_terminated", "run_id": "run1", "status": "FINISHED",
    }  # fmt: skip


def test_a_service_that_fails_in_the_middle_stops_nothing_and_is_named_once(train, tmp_path):
    result, _ = train("wandb", 21, fails="log")
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "out/model_final.pth").exists()
    log = (tmp_path / "out/log.txt").read_text()
    assert log.count("has failed (ConnectionError: there is no route to the host)") == 1
    assert "Traceback" not in result.stderr + result.stdout


def test_a_run_that_cannot_start_is_refused(train, tmp_path):
    result, _ = train("wandb", 1, fails="init")
    assert_one_line_error(
        result, "TRACKER.SERVICE wandb cannot start a run", "no route", "WANDB_MODE=offline"
    )
    assert not (tmp_path / "out/model_final.pth").exists()


@pytest.mark.parametrize("service", sorted(trackers.SERVICES))
def test_a_missing_package_is_named_before_anything_starts(service, train, tmp_path):
    result, _ = train(service, 1, tool=ROOT / "tools/train_net.py")
    assert_one_line_error(result, f"TRACKER.SERVICE {service} needs {service}", f"pip install {service}")
    assert not (tmp_path / "out/log.txt").exists()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("SERVICE", "wanb", "did you mean wandb?"),
        ("PROJECT", " ", "TRACKER.PROJECT must be a name"),
        ("RUN", "", "TRACKER.RUN must be a name"),
    ],
)
def test_wrong_values_are_named(key, value, message, train, data, run_python, tmp_path):
    words = tiny.command(data, tmp_path, 1, "TRACKER.SERVICE", "wandb", f"TRACKER.{key}", value)
    assert_one_line_error(run_python(*words), message)


@pytest.fixture(params=["wandb"])
def writer(request, tmp_path, monkeypatch):
    """A writer to the stand-in of Weights & Biases or another one, and the file of its calls."""
    monkeypatch.syspath_prepend(str(STAND_INS))
    monkeypatch.setenv("TRACKER_CALLS", str(tmp_path / "calls"))
    cfg = default_config()
    cfg.OUTPUT_DIR, cfg.TRACKER.SERVICE = str(tmp_path), request.param
    yield trackers.TrackerWriter(cfg, 5), tmp_path / "calls"
    for name in ("wandb", "mlflow", "mlflow.entities", "calls"):
        sys.modules.pop(name, None)


def test_what_could_not_be_sent_is_sent_in_its_order_when_the_service_answers_again(
    writer, monkeypatch, caplog
):
    writer, file = writer
    with EventStorage() as storage, caplog.at_level(logging.WARNING):
        writer.start()
        monkeypatch.setenv("TRACKER_FAILS", "log")
        for iteration in range(3):
            storage.iter = iteration
            storage.put_scalar("loss", 1.0 + iteration, smoothing_hint=False)
            writer.write()
        monkeypatch.setenv("TRACKER_FAILS", "")
        writer.write()
        assert not calls(file, "log")  # not at each iteration: an attempt may take a minute
        writer.close()
    assert [(c["values"]["iteration"], c["values"]["loss"]) for c in calls(file, "log")] == [
        (0, 1),
        (1, 2),
        (2, 3),
    ]
    assert calls(file)[-1] == {
        "service": "wandb",
        "what": "finish",
        "exit_code": 1,
    }  # before the last iteration
    assert len(caplog.records) == 1


def test_a_resumed_run_that_cannot_start_is_sent_later(writer, monkeypatch, caplog):
    writer, file = writer
    place = {"service": "wandb", "project": "resnest_d2", "run": "earlier"}
    Path(writer._cfg.OUTPUT_DIR, trackers.FILE).write_text(json.dumps(place))
    monkeypatch.setenv("TRACKER_FAILS", "init")
    with EventStorage() as storage, caplog.at_level(logging.WARNING):
        writer.start()
        storage.put_scalar("loss", 1.0)
        writer.write()
        monkeypatch.setenv("TRACKER_FAILS", "finish")
        writer.close()  # and ending it stops nothing, either
    assert calls(file, "init")[0]["id"] == "earlier" and calls(file, "log")[0]["values"]["loss"] == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("writer", ["mlflow"], indirect=True)
def test_mlflow_goes_on_with_the_run_of_a_resumed_training(writer):
    writer, file = writer
    place = {"service": "mlflow", "project": "resnest_d2", "run": "earlier"}
    Path(writer._cfg.OUTPUT_DIR, trackers.FILE).write_text(json.dumps(place))
    writer.start()
    assert calls(file, "get_run") and not calls(file, "create_run")
    assert calls(file, "update_run")[0]["status"] == "RUNNING"
    assert not calls(file, "log")  # parameters cannot change
    with EventStorage() as storage:
        storage.iter = 7
        storage.put_scalar("loss", 1.0)
        writer.write()
        writer.close()
    assert (
        calls(file, "log")[0]["metrics"] == [["loss", 1.0, 7]]
        and calls(file, "log")[0]["run_id"] == "earlier"
    )


def test_another_project_is_another_run(writer):
    writer, file = writer
    place = Path(writer._cfg.OUTPUT_DIR, trackers.FILE)
    place.write_text(json.dumps({"service": "wandb", "project": "other", "run": "theirs"}))
    writer.start()
    assert calls(file, "init")[0]["id"] is None and json.loads(place.read_text())["run"] == "run1"


@pytest.mark.parametrize(
    "name", ["loss", "bbox/AP-naïve (2)", "bbox/AP-a//b", "../x", "a/../b", "", "x" * 300, "AP-$%", "."]
)
def test_metrics_get_names_that_mlflow_takes(name):
    allowed = trackers._allowed(name)
    assert re.fullmatch(r"[\w\-. /]{1,250}", allowed, re.ASCII) and not allowed.startswith(("/", "."))
    assert "//" not in allowed and ".." not in allowed.split("/")
    assert allowed == name or name != "loss"


def test_names_of_metrics_stay_different_in_mlflow():
    names = ["bbox/AP-\u732b", "bbox/AP-\u72d7", "bbox/AP-_", "a" * 300, "a" * 301, "x:y", "x_y"]
    assert len({*map(trackers._allowed, names)}) == len(names)


def test_a_file_that_is_damaged_is_named(writer):
    writer, _ = writer
    Path(writer._cfg.OUTPUT_DIR, trackers.FILE).write_text("{")
    with pytest.raises(UserError, match=r"tracker\.json is not valid JSON"):
        writer.start()
