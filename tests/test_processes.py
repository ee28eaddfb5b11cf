"""Several processes, as torchrun starts them and as --num-gpus does, on the CPU."""

import functools
import json
import os
import re
import signal
import time

import pytest
import torch
from robust import kills, tiny
from support import ROOT

from resnest_d2.engine.launch import _free_port

pytestmark = pytest.mark.long
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
CPU, FOUR = ("MODEL.DEVICE", "cpu"), ("SOLVER.IMS_PER_BATCH", 4)
# So many sizes that two processes hardly choose alike.
RANDOM = ("INPUT.MIN_SIZE_TRAIN", "(48, 96)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range")
# Nothing random, and losses that are means over as many terms in each process as in all of them.
DETERMINATE = (
    *("MODEL.RESNETS.NORM", "SyncBN", "MODEL.RPN.NMS_THRESH", 1.0, "INPUT.RANDOM_FLIP", "none"),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100000, "MODEL.RPN.POSITIVE_FRACTION", 1.0),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 512, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0),
    *("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False, "MODEL.FPN.NORM", "SyncBN", "SOLVER.BASE_LR", 0.01),
    *("SOLVER.OPTIMIZER", "SGD", "TEST.PRECISE_BN.ENABLED", False, "SOLVER.MAX_ITER", 10),
    # With some seeds (1, say) rounding exchanges two proposals of nearly one score, which moves losses by 2e-4
    # from one iteration to the next; with others they agree to 6e-6.
    *("SEED", 11),
)
# Of each image as many detections as there may be.
EVERYTHING = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)


@pytest.fixture(scope="module")
def data(few_shapes):
    return tiny.shapes(few_shapes)


@pytest.fixture(scope="module")
def bccd(coco_root):
    """Real images of one size, so that no padding enters the norms' statistics."""
    folder = coco_root / "bccd"
    annotations = (folder / "annotations/train.json", folder / "annotations/val.json")
    return tiny.own_data(*((file, folder / "images") for file in annotations))


def run(words, log, start=tiny.fork, status=0):
    """What it printed."""
    assert start(words, log).wait(300) == status, log.read_text()[-3000:]
    return log.read_text()


def torchrun_two(words, log):
    return tiny.start(words, log, *TORCHRUN, "2")  # which starts new interpreters anyway


def launch_two(words, log):
    return tiny.fork([words[0], "--num-gpus", "2", *words[1:]], log)


class Two:
    """Two forked processes in the environment that torchrun gives to its own, without the seconds that it takes."""

    def __init__(self, words, log):
        values = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "two"}
        values.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
        self._processes = [tiny.fork(words, log, env={**values, "RANK": r, "LOCAL_RANK": r}) for r in "01"]

    def wait(self, timeout):
        """The worse of their statuses."""
        return max((process.wait(timeout) for process in self._processes), key=abs)


def losses(output):
    values = json.loads((output / "losses.json").read_text())
    return [values[key] for key in sorted(values, key=int)]


def lossy(data, output):
    words = tiny.command(data, output, 10, *DETERMINATE, *EVERYTHING)
    return [str(ROOT / "tests/robust/losses.py"), *words[1:]]


@pytest.fixture(scope="module")
def one(bccd, tmp_path_factory):
    """Where one process has trained with two images an iteration, and evaluated."""
    output = tmp_path_factory.mktemp("one") / "out"
    log = run(lossy(bccd, output), output.with_suffix(".log"))
    assert "BN instead of a synchronised norm, as there is one process" in log
    return output


def test_two_processes_with_an_image_each_lose_as_one_with_two(one, bccd, tmp_path):
    log = run(lossy(bccd, tmp_path / "two"), tmp_path / "two.log", Two)
    assert "naiveSyncBN instead of" in log and "as there is one process" not in log
    expected, got = losses(one), losses(tmp_path / "two")
    assert len(expected) == 10 and expected[-1] != expected[0]
    assert got == pytest.approx(expected, rel=1e-4)
    a, b = tiny.weights(one), tiny.weights(tmp_path / "two")
    for name in (n for n in a if n.endswith((".weight", ".bias"))):  # the norms count batches differently
        torch.testing.assert_close(b[name], a[name], rtol=1e-3, atol=1e-5)


def test_evaluation_over_processes_equals_that_of_one_also_with_a_remainder(one, bccd, tmp_path):
    """87 images over 2 processes, detections of a network that has learned next to nothing."""
    settings = (*DETERMINATE, *EVERYTHING, "MODEL.WEIGHTS", one / "model_final.pth")
    words = tiny.command(bccd, tmp_path / "two", 10, *settings, flags=("--eval-only",))
    run(words, tmp_path / "two.log", Two)
    results, found = (
        [json.loads((output / name).read_text()) for output in (one, tmp_path / "two")]
        for name in ("results.json", "inference/coco_instances_results.json")
    )
    assert len(found[0]) == 87 * 5 and found[0] == found[1]
    assert results[0]["results"] == results[1]["results"]


@pytest.fixture(scope="module")
def draws(data, tmp_path_factory):
    """draws(start): what each of two processes draws with 0, 1 and 2 loader workers."""

    def draw(start):
        output = tmp_path_factory.mktemp("draws") / "out"
        words = tiny.command(data, output, 4, *CPU, *FOUR, *RANDOM)
        run([str(ROOT / "tests/robust/draws.py"), *words[1:]], output.with_suffix(".log"), start)
        return [json.loads((output / f"draws_{rank}.json").read_text()) for rank in (0, 1)]

    return functools.lru_cache(draw)


@pytest.mark.parametrize(
    "start", [Two, *(pytest.param(start, marks=pytest.mark.slow) for start in (torchrun_two, launch_two))]
)
def test_processes_draw_their_own_whoever_starts_them_and_with_any_number_of_workers(start, draws):
    one, other = drawn = draws(start)
    assert drawn == draws(Two)
    assert all(of_rank["0"] == of_rank["1"] == of_rank["2"] for of_rank in drawn)
    sizes = [[size for _, size, *_ in of_rank["0"]] for of_rank in (one, other)]
    assert len(sizes[0]) == 6 and sizes[0] != sizes[1]


@pytest.mark.parametrize("start", [Two, pytest.param(launch_two, marks=pytest.mark.slow)])
def test_a_mistake_in_a_started_process_is_one_line_too(start, data, tmp_path):
    words = tiny.command(data, tmp_path / "out", 4, *CPU, "SOLVER.OPTIMIZER", "ADAM", *FOUR)
    log = run(words, tmp_path / "log", start, status=2)
    assert "error: SOLVER.OPTIMIZER must be SGD or ADAMW, got 'ADAM'" in log and "Traceback" not in log
    # PyTorch may warn of the other process's end.
    assert len([line for line in log.splitlines() if line.startswith("error: ")]) == 1


@pytest.mark.slow
def test_torchrun_restarts_after_a_worker_is_killed_and_the_run_ends_as_if_it_were_not(data, tmp_path):
    run(tiny.command(data, tmp_path / "whole", 40, *FOUR), tmp_path / "whole.log", Two)
    words = tiny.command(data, tmp_path / "out", 40, *FOUR)
    process = tiny.start(words, tmp_path / "log", *TORCHRUN, "2", "--max-restarts", "2")
    while not (tmp_path / "out/model_0000007.pth").exists():
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.002)
    workers = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _parent(pid) == process.pid]
    os.kill(workers[-1], signal.SIGKILL)
    assert process.wait(300) == 0, (tmp_path / "log").read_text()[-3000:]
    starts = re.findall(r"Starting training from iteration (\d+)", (tmp_path / "log").read_text())
    assert starts[0] == "0" and len(starts) == 2 and int(starts[1]) >= 8
    assert tiny.equal(tiny.weights(tmp_path / "whole"), tiny.weights(tmp_path / "out"))


@pytest.mark.slow
def test_two_processes_stop_by_a_signal_where_they_can_go_on_from_and_nobody_is_left(tmp_path):
    """Also by a scheduler, which tells all; and by SIGKILL, after which nobody is left either."""
    statuses = {
        "SIGTERM to the launcher": 143,
        "SIGKILL to the launcher": -signal.SIGKILL,
        "SIGTERM to the group": 143,
        "SIGTERM to torchrun and all under it": 1,  # torchrun ends by an exception of its own
    }
    stops, equal = kills.stop_processes(tmp_path, [*statuses], seed=1, whole=Two)
    assert [stop.status for stop in stops] == [*statuses.values()]
    assert [(stop.way, stop.lost, stop.left) for stop in stops if stop.lost or stop.left] == []
    assert equal
    assert json.loads((tmp_path / "stopped/results.json").read_text())["processes"] == 2


def _parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None
