"""Batches that follow from the seed and their place, and images that cannot be used."""

import errno
import itertools
import math
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from PIL import Image

from resnest_d2 import UserError, model_zoo
from resnest_d2.data.loader import SHARED_MEMORY, CheckedMapper, ResumableBatchSampler, build_train_loader
from resnest_d2.data.seeding import seed_all, seeded
from resnest_d2.engine.failures import named_failures
from resnest_d2.engine.fit import fit_workers

SIZE = 10


def drawn(start=0, batch_size=2, groups=None, count=20, seed=3):
    """So many batches of positions and indices."""
    sampler = ResumableBatchSampler(TrainingSampler(SIZE, seed=seed), batch_size, groups)
    sampler.start = start
    return list(itertools.islice(sampler, count))


def test_batches_hold_the_samplers_images_in_its_order_without_groups():
    expected = list(enumerate(itertools.islice(TrainingSampler(SIZE, seed=3), 40)))
    assert list(itertools.chain(*drawn())) == expected


@pytest.mark.parametrize("groups", [None, [0, 0, 0, 1, 1, 0, 1, 0, 0, 1]])
@pytest.mark.parametrize("start", [1, 7])
def test_a_later_start_gives_what_would_have_come(start, groups):
    assert drawn(start, groups=groups) == drawn(groups=groups, count=30)[start : start + 20]


def test_batches_are_of_one_group_and_no_sample_is_lost():
    groups = [0, 0, 0, 1, 1, 0, 1, 0, 0, 1]
    batches = drawn(batch_size=4, groups=groups, count=100)
    assert all(len(batch) == 4 and len({groups[index] for _, index in batch}) == 1 for batch in batches)
    positions = {position for batch in batches for position, _ in batch}
    assert len(positions) == 400
    # At most an unfinished batch of each group waits.
    assert len(set(range(380)) - positions) <= 2 * 3


def test_processes_draw_different_samples(monkeypatch):
    samples = []
    for rank in (0, 1):
        with monkeypatch.context() as patched:
            for module in ("detectron2.data.samplers.distributed_sampler", "resnest_d2.data.loader"):
                patched.setattr(f"{module}.comm.get_rank", lambda rank=rank: rank)
                patched.setattr(f"{module}.comm.get_world_size", lambda: 2)
            samples += itertools.chain(*drawn(count=10))
    assert sorted(samples) == sorted(itertools.chain(*drawn()))


def test_seeds_set_all_generators_and_a_block_leaves_them_as_they_were():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_all(1, 2)
    first, second = draw(), draw()
    seed_all(1, 2)
    assert draw() == first
    with seeded(5):
        inside = draw()
    assert draw() == second and inside not in (first, second)
    with seeded(5):
        assert draw() == inside
    with seeded(6):
        assert draw() != inside


@pytest.fixture(scope="module")
def cfg():
    cfg = model_zoo.get_config("quickstart")
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 96, 128)
    return cfg


def batches(cfg, start, count):
    loader = build_train_loader(cfg)
    loader.batch_sampler.start = start
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_that_starts_later_gives_the_same_batches_augmentation_included(workers, cfg):
    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = workers
    whole, later = batches(cfg, 0, 4), batches(cfg, 2, 2)
    for a, b in zip(whole[2:], later):
        assert len(a) == cfg.SOLVER.IMS_PER_BATCH
        for x, y in zip(a, b):
            assert x["file_name"] == y["file_name"] and torch.equal(x["image"], y["image"])
    sizes = {tuple(x["image"].shape) for batch in whole for x in batch}
    assert len(sizes) > 2  # the augmentation does choose


def test_an_image_that_the_mapper_rejects_makes_way_for_another(cfg):
    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = 0

    def names(mapper):
        batches = itertools.islice(build_train_loader(cfg, mapper), 5)
        return [record["file_name"] for batch in batches for record in batch]

    def kept(name):
        return int(Path(name).stem) % 2 == 0

    everything = names(dict)
    chosen = names(lambda record: record if kept(record["file_name"]) else None)
    assert all(map(kept, chosen)) and not all(map(kept, everything))
    assert [new for new, old in zip(chosen, everything) if kept(old)] == [*filter(kept, everything)]
    with pytest.raises(UserError, match="returned None for 100 images"):
        names(lambda record: None)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_8_bits_are_named(mode, tmp_path):
    Image.new(mode, (4, 4)).save(tmp_path / "deep.tiff")
    with pytest.raises(
        UserError, match=r"deep\.tiff has more than 8 bits per channel .*convert it to 8 bits"
    ):
        CheckedMapper(lambda record: record)({"file_name": str(tmp_path / "deep.tiff")})


def test_a_sound_image_at_which_a_mapper_fails_is_not_said_to_be_at_fault(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "sound.png")
    said = r"sound\.png cannot be used \(division by zero\); if tools/check_dataset.py finds nothing .*, the configuration's INPUT"
    with pytest.raises(UserError, match=said):
        CheckedMapper(lambda record: 1 / 0)({"file_name": str(tmp_path / "sound.png")})


def loaded_by_a_worker(cfg):
    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = 1
    return iter(build_train_loader(cfg))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV])
def test_a_worker_that_dies_ends_the_run_in_one_line(number, cfg):
    batches = loaded_by_a_worker(cfg)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)
    with pytest.raises(UserError, match=r"^DataLoader worker .*DATALOADER.NUM_WORKERS"), named_failures(cfg):
        while True:
            next(batches)


RESET = (errno.ECONNRESET, "Connection reset by peer")


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(*RESET), ConnectionRefusedError(*RESET), FileNotFoundError(*RESET), EOFError()],
    ids=lambda error: type(error).__name__,
)
def test_a_worker_that_dies_while_it_hands_an_image_over_is_no_failure_to_write(error, cfg):
    with pytest.raises(UserError, match=r"^DataLoader worker .*DATALOADER.NUM_WORKERS"), named_failures(cfg):
        raise error


def test_the_end_of_a_file_is_not_blamed_on_a_worker(cfg):
    with pytest.raises(EOFError, match="Ran out of input"), named_failures(cfg):
        raise EOFError("Ran out of input")


def test_shared_memory_that_is_full_is_said_by_the_worker_and_nobody_waits(cfg, tmp_path):
    """The largest file stands for the room there: the system refuses both alike."""
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            next(loaded_by_a_worker(cfg))
        except UserError as e:
            os._exit(0 if "has no space for the loader workers' batches" in str(e) else 3)
        finally:
            os._exit(4)
    end = time.time() + 30
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.time() < end:
        time.sleep(0.02)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
    assert ended[0] and os.waitstatus_to_exitcode(ended[1]) == 0


@pytest.mark.parametrize("train", [True, False])
def test_no_more_workers_than_shared_memory_holds_batches_of(train, cfg):
    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = 4
    assert fit_workers(cfg, 1, 1, train) == [] and cfg.DATALOADER.NUM_WORKERS == 4
    free = os.statvfs(SHARED_MEMORY)
    side = math.isqrt(free.f_bavail * free.f_frsize // 15)  # of which 15 bytes take all that there is
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = side
    (note,) = fit_workers(cfg, 1, 1, train)
    assert cfg.DATALOADER.NUM_WORKERS == 2  # of 3 bytes, twice
    assert "DATALOADER.NUM_WORKERS 2 instead of 4" in note and "docker run --shm-size 8g" in note
    (note,) = fit_workers(cfg, 8, 8, train)
    assert cfg.DATALOADER.NUM_WORKERS == 0
    assert fit_workers(cfg, 8, 8, train) == []
