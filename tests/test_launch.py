"""How many processes may run, on what, and by which backend they meet; CUDA devices are simulated."""

import itertools
import multiprocessing
import os
import re
import signal
import sys
import time
from argparse import Namespace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from resnest_d2 import UserError, model_zoo
from resnest_d2.engine.fit import check_processes
from resnest_d2.engine.launch import _free_port, _process_group, _wait, launch


def arguments(processes, *opts, machines=1, rank=0, url="auto"):
    return Namespace(
        num_gpus=processes, num_machines=machines, machine_rank=rank, dist_url=url, opts=list(opts),
        config_file=model_zoo.get_config_file("quickstart"),
    )  # fmt: skip


def config(device):
    cfg = model_zoo.get_config("quickstart")
    cfg.MODEL.DEVICE = device
    return cfg


@pytest.mark.parametrize(
    "gpus, processes, device, opts, refused",
    [
        (0, 1, "cpu", (), False),
        (0, 2, "cpu", (), True),  # who asks for two GPUs
        (0, 2, "cpu", ("MODEL.DEVICE", "cpu"), False),
        (2, 2, "cuda", (), False),
        (2, 3, "cuda", (), True),
        (2, 3, "cuda", ("MODEL.DEVICE", "cuda"), True),
        (2, 3, "cpu", ("MODEL.DEVICE", "cpu"), False),
        (2, 3, "cpu", (), False),  # by the configuration file
    ],
)
def test_each_process_has_a_gpu_or_none_needs_one(gpus, processes, device, opts, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if not refused:
        check_processes(config(device), arguments(processes, *opts))
        return
    with pytest.raises(UserError, match=rf"--num-gpus {processes}: {gpus} visible .*MODEL.DEVICE cpu runs"):
        check_processes(config(device), arguments(processes, *opts))


def test_a_configuration_file_may_ask_for_the_cpu_as_the_command_line_may(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    args = arguments(2)
    for name, text in (("base", "MODEL: {DEVICE: cpu}"), ("leaf", "_BASE_: base.yaml")):
        args.config_file = str(tmp_path / f"{name}.yaml")
        (tmp_path / f"{name}.yaml").write_text(text)
        check_processes(config("cpu"), args)


def test_torchruns_processes_need_as_many_gpus(monkeypatch):
    as_torchrun(monkeypatch, 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_processes(config("cpu"), arguments(1))
    with pytest.raises(UserError, match="--nproc-per-node 3: 2 visible"):
        check_processes(config("cuda"), arguments(1))


def as_torchrun(monkeypatch, processes):
    sizes = {name: str(processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    place = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in {"TORCHELASTIC_RUN_ID": "x", **sizes, **place}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "args, message",
    [
        (arguments(0), "--num-gpus must be >= 1, got 0"),
        (arguments(1, machines=0), "--num-machines must be >= 1, got 0"),
        (
            arguments(1, machines=2, rank=2),
            "--machine-rank must be from 0 to 1, as --num-machines is 2, got 2",
        ),
    ],
)
def test_numbers_that_make_no_sense_are_named(args, message):
    with pytest.raises(UserError, match=message):
        check_processes(config("cpu"), args)


def test_several_machines_need_a_place_to_meet():
    with pytest.raises(UserError, match="--num-machines 2 needs --dist-url tcp://HOST:PORT"):
        check_processes(config("cpu"), arguments(1, machines=2))


@pytest.mark.parametrize(
    "url, message",
    [
        ("tcp://127.0.0.1", "needs --dist-url tcp://HOST:PORT.*got 'tcp://127.0.0.1'"),
        ("tcp://127.0.0.1:99999", "needs --dist-url"),
        ("tcp://no.such.host.invalid:4000", "there is no host no.such.host.invalid"),
        ("gopher://127.0.0.1:4000", "needs --dist-url"),
        ("file:///nowhere/at/all", "no file can be made there"),
        ("file:///proc/store", "no file can be made there"),  # where even root makes none
        ("file:///dev/null", "no file can be made there"),
        (f"file:///tmp/{'x' * 300}", "no file can be made there"),
        ("env://", "needs --dist-url"),
    ],
)
def test_places_where_nobody_can_meet_are_refused_before_anybody_waits(url, message, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=message):
        check_processes(config("cpu"), arguments(1, machines=2, url=url))


@pytest.mark.parametrize("url", ["tcp://localhost:4000", "tcp://[::1]:4000", "file:///tmp/no-such-file-yet"])
def test_places_where_they_can_are_not(url):
    check_processes(config("cpu"), arguments(1, machines=2, url=url))


def test_a_file_that_is_left_from_another_run_is_no_place(tmp_path):
    (tmp_path / "store").touch()
    with pytest.raises(UserError, match="left from another run; remove it"):
        check_processes(config("cpu"), arguments(2, "MODEL.DEVICE", "cpu", url=f"file://{tmp_path}/store"))


def test_a_process_that_waits_says_for_whom(monkeypatch, tmp_path):
    monkeypatch.setattr("resnest_d2.engine.launch._PATIENCE", 0.1)
    file = tmp_path / "stderr"
    process = multiprocessing.get_context("fork").Process(target=wait_in_vain, args=(str(file),))
    process.start()
    end = time.time() + 30
    while time.time() < end and not (file.exists() and file.read_text()):
        time.sleep(0.05)
    assert process.is_alive()
    process.kill()
    process.join()
    assert re.fullmatch(
        r"waiting at tcp://127\.0\.0\.1:\d+ for 2 processes, of 2 machine\(s\)\n", file.read_text()
    )


def wait_in_vain(file):
    sys.stderr = open(file, "w")
    meeting = {"init_method": f"tcp://127.0.0.1:{_free_port()}", "rank": 1, "world_size": 2}
    with _process_group("cpu", 0, 1, **meeting):
        pass


@pytest.mark.parametrize(
    "ends, signals, status",
    [
        (lambda: None, (), 0),
        (lambda: os._exit(2), (), 2),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), (), 137),
        (lambda: time.sleep(60), (signal.SIGTERM,), 143),
    ],
)
def test_the_status_is_that_of_the_first_process_that_fails_and_the_others_are_told(
    ends, signals, status, capfd
):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=ends), fork.Process(target=time.sleep, args=(60 if status else 0,))]
    for process in processes:
        process.start()
    assert _wait(processes, signals) == status
    assert [process.exitcode for process in processes][1:] == ([-signal.SIGTERM] if status else [0])
    assert ("error: a process of this run was ended by SIGKILL" in capfd.readouterr().err) == (status == 137)


@pytest.mark.parametrize(
    "name, value",
    [
        *itertools.product(
            ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"),
            (None, "two", "", "9" * 20),
        ),
        *(
            ("MASTER_ADDR", None),
            ("MASTER_ADDR", ""),
            ("WORLD_SIZE", "0"),
            ("RANK", "2"),
            ("LOCAL_RANK", "2"),
        ),
        *(("WORLD_SIZE", "3"), ("LOCAL_WORLD_SIZE", "0"), ("LOCAL_WORLD_SIZE", "4")),
    ],
)
def test_a_part_of_torchruns_environment_is_named(name, value, monkeypatch):
    as_torchrun(monkeypatch, 2)
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^({name}|WORLD_SIZE) is .* unset TORCHELASTIC_RUN_ID"):
        check_processes(config("cpu"), arguments(1))


def test_a_place_where_processes_cannot_meet_is_said_in_one_line():
    with pytest.raises(UserError, match=r"--dist-url tcp://127\.0\.0\.1: the processes cannot meet there"):
        with _process_group("cpu", 0, 1, init_method="tcp://127.0.0.1", rank=0, world_size=2):
            pass


def test_processes_on_the_cpu_meet_over_gloo_where_there_are_gpus_and_wait_as_detectron2s(monkeypatch):
    as_torchrun(monkeypatch, 1)
    process = multiprocessing.get_context("fork").Process(target=meet)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def meet():
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2

    def look():
        assert dist.get_backend() == "gloo"
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timedelta(minutes=30)

    launch(look, (), arguments(1), "cpu")


def test_processes_on_gpus_meet_over_nccl(monkeypatch):
    class Met(Exception):
        pass

    def meet(backend, **meeting):
        raise Met(backend)

    devices = []
    as_torchrun(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(dist, "init_process_group", meet)
    monkeypatch.setattr("resnest_d2.engine.launch.end_with_parent", lambda: None)
    with pytest.raises(Met, match="nccl"):
        launch(print, (), arguments(1), "cuda")
    assert devices == [0]
