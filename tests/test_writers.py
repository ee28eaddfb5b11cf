"""Files that a run writes and cannot: one line with the file's name, and no traceback. Those it goes on with."""

import json
import logging

import pytest
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

from resnest_d2 import UserError
from resnest_d2.engine.cli import _end_on_failure
from resnest_d2.engine.writers import build_writers


@pytest.fixture
def storage():
    with EventStorage() as storage:
        storage.put_scalar("total_loss", 1.0)
        yield storage


def written(writers, storage):
    for writer in writers[1:]:  # the first prints
        storage.iter += 1
        storage.put_scalar("total_loss", 1.0)
        writer.write()


def test_metrics_on_a_full_disk(storage, tmp_path, capfd):
    (tmp_path / "metrics.json").symlink_to("/dev/full")
    with pytest.raises(
        UserError, match=r"cannot write .*metrics.json \(No space left on device\); make room"
    ):
        written(build_writers(str(tmp_path), 9), storage)
    assert "Traceback" not in capfd.readouterr().err


def test_events_that_cannot_be_written_end_the_run_without_a_traceback_of_their_thread(
    storage, tmp_path, capfd
):
    writers = build_writers(str(tmp_path), 9)
    written(writers, storage)
    (events,) = tmp_path.glob("events.out.tfevents.*")
    events.unlink()
    events.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*events.out.tfevents.* \(No space left on device\)"):
        for _ in range(3):
            written(writers, storage)
            for writer in writers[1:]:
                writer.close()
    assert "Traceback" not in capfd.readouterr().err


def test_a_log_on_a_full_disk(tmp_path, capfd):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    logger = setup_logger(str(tmp_path), name="resnest_d2.on_a_full_disk", configure_stdout=False)
    _end_on_failure([logger], tmp_path / "log.txt")
    with pytest.raises(UserError, match=r"cannot write .*log.txt \(No space left on device\)"):
        logger.info("a line")
    logger.info("what follows is dropped, as is what had been left in the buffer")
    logging.shutdown()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "left, kept",
    [
        (b"", b""),
        (b'{"iteration": 3}\n', b'{"iteration": 3}\n'),
        (b'{"iteration": 3}', b'{"iteration": 3}\n'),
        (b'{"iteration": 3}\n{"iterat', b'{"iteration": 3}\n'),
        (b'{"iteration": 3}\n\0\0\0', b'{"iteration": 3}\n'),
        (b'{"loss": 1.5, "iter\xff', b""),
        (b"[" * 100_000, b""),
    ],
)
def test_a_record_begins_a_line_whatever_a_killed_process_has_left(left, kept, storage, tmp_path):
    file = tmp_path / "metrics.json"
    file.write_bytes(left)
    writers = build_writers(str(tmp_path), 9)
    written(writers, storage)
    assert file.read_bytes().startswith(kept)
    records = [json.loads(line) for line in file.read_bytes()[len(kept) :].splitlines()]
    assert [record["iteration"] for record in records] == [1]
