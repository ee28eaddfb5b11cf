"""detectron2's writers of metrics, which report in one line what they cannot write."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import List

from detectron2.engine import default_writers
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter

from ..errors import UserError
from ..files import parse_json, writing


class NamedWriter(EventWriter):
    """A writer whose error message names its file.

    Args:
        writer: the wrapped writer.
        file: the file that it writes to.
    """

    def __init__(self, writer: EventWriter, file: Path) -> None:
        self._writer, self._file = writer, file

    def write(self) -> None:
        with writing(self._file):
            self._writer.write()

    def close(self) -> None:
        with writing(self._file):
            self._writer.close()


def build_writers(output_dir: str, max_iter: int) -> List[EventWriter]:
    """Build detectron2's writers, with error messages that name their files."""
    # TensorBoard's thread records the exception that ends it, and the next write raises it.
    threading.excepthook = _leave_to_writer
    files = {JSONWriter: "metrics.json", TensorboardXWriter: "events.out.tfevents"}
    mend_last_line(Path(output_dir, files[JSONWriter]))
    return [
        NamedWriter(writer, Path(output_dir, files[type(writer)])) if type(writer) in files else writer
        for writer in default_writers(output_dir, max_iter)
    ]


def mend_last_line(file: Path) -> None:
    """Make sure that the next record of a ``metrics.json`` begins a line, whatever a killed process left.

    A record that lacks only its line break gets one; a partial record is dropped.
    """
    if not file.is_file():
        return
    with writing(file), file.open("r+b") as lines:
        last = b"".join(deque(lines, maxlen=1))
        if not last or last.endswith(b"\n"):
            return
        try:
            parse_json(last.decode("utf-8", "replace"), str(file))
            lines.write(b"\n")
        except UserError:
            lines.truncate(lines.tell() - len(last))


def _leave_to_writer(failure: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, unless it is TensorBoard's failing to write."""
    if not isinstance(failure.exc_value, OSError) or "AsyncWriter" not in type(failure.thread).__name__:
        threading.__excepthook__(failure)
