"""Videos by OpenCV, which detectron2 requires."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Tuple, Union

import numpy as np

from ..errors import UserError, needs
from ..files import PathLike, atomic_writer, check_readable

#: Extension and codec (MPEG-4 part 2) of the videos that are written. OpenCV's wheels have no encoder of
#: H.264, and that of VP9 is far slower.
SUFFIX, _CODEC = ".mp4", "mp4v"
#: Frames per second where a file or a camera does not say, and the most that are believed.
_RATE, _FASTEST = 25.0, 1000.0
#: Damaged frames in a row after which a video counts as ended.
_PATIENCE = 25


def _opencv() -> Any:
    with needs("cv2", "reading and writing videos", "pip install opencv-python-headless"):
        import cv2
    return cv2


class Video:
    """The frames of a video, (H, W, 3) uint8 RGB, one after the other; None for those that are damaged.

    They are turned as the file says.

    Args:
        place: path of a file, or index of a camera.

    Attributes:
        rate: frames per second.
        count: number of frames by the file's header; 0 if it does not say.

    Raises:
        UserError: OpenCV cannot open it; or, when iterated, a file ends a second before its header says.
    """

    def __init__(self, place: Union[str, int]) -> None:
        cv2 = _opencv()
        self._place, self._camera = place, isinstance(place, int)
        if not self._camera:
            check_readable(place)
        self._capture = cv2.VideoCapture(place)
        if not self._capture.isOpened():
            raise UserError(
                f"camera {place} cannot be opened; is it connected, and free?"
                if self._camera
                else f"{place} is not a video that OpenCV reads, or is damaged; convert it, or leave it out"
            )
        rate, count = (self._capture.get(p) for p in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.rate = rate if 0 < rate <= _FASTEST else _RATE
        self.count = int(count) if 0 < count < math.inf and not self._camera else 0

    def __iter__(self) -> Iterator[Optional[np.ndarray]]:
        position = failed = 0
        while True:
            there, frame = self._capture.read()
            if not there:
                failed += 1
                # OpenCV also says so of a damaged frame, after which others may follow.
                if failed > _PATIENCE or position + failed > self.count:
                    break
                continue
            yield from [None] * failed
            yield np.ascontiguousarray(frame[:, :, ::-1])
            position, failed = position + failed + 1, 0
        if not position:
            raise UserError(f"{self._place} holds no frame that can be read, or is damaged")
        # Where a header only gives the duration, the count is an estimate.
        if position < self.count - self.rate:
            raise UserError(f"{self._place} is damaged: it ends after {position} of {self.count} frames")

    def close(self) -> None:
        self._capture.release()


@contextmanager
def video_writer(target: PathLike, rate: float, size: Tuple[int, int]) -> Iterator[Callable[[Any], None]]:
    """Write a video, which appears complete or not at all.

    Args:
        rate: frames per second.
        size: width and height in pixels.

    Yields:
        A function that adds a frame, (H, W, 3) uint8 RGB.

    Raises:
        UserError: it cannot be written.
    """
    cv2 = _opencv()
    with atomic_writer(target, ending=SUFFIX) as file:
        writer = cv2.VideoWriter(file.name, cv2.VideoWriter_fourcc(*_CODEC), rate, size)
        if not writer.isOpened():
            shape = f"{size[0]}x{size[1]}"
            raise UserError(f"cannot write {target}: OpenCV cannot encode {shape} pixels as {_CODEC}")
        written = 0

        def write(frame: np.ndarray) -> None:
            nonlocal written
            writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
            written += 1

        try:
            yield write
        finally:
            writer.release()
        # The writer does not say when the disk is full, for instance.
        reader = cv2.VideoCapture(file.name)
        count = reader.get(cv2.CAP_PROP_FRAME_COUNT) if reader.isOpened() else 0
        reader.release()
        if count < written - rate or not count:
            raise UserError(f"cannot write {target}: {int(count)} of {written} frames arrived; make room")
