"""What a user names on a command line - images, folders, patterns, videos, cameras - as one lazy stream."""

from __future__ import annotations

import glob
import os
import re
from contextlib import closing, suppress
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from PIL import Image

from ..config import default_config, flatten
from ..data.image_files import EXTENSIONS, files_below
from ..errors import UserError
from ..files import check_readable, lies_in, unused_name
from .video import Video

#: Extensions of the files that are videos.
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
_MARKS = "*?["


class Source(NamedTuple):
    """A file or camera to predict on.

    Attributes:
        name: the path of the file, or ``camera 0``.
        place: what to open: the path, or for a camera its index.
        moves: whether it has frames.
        stem: of the names of what is written for it; those of two sources differ.
    """

    name: str
    place: Union[str, int]
    moves: bool
    stem: str

    @property
    def is_camera(self) -> bool:
        return isinstance(self.place, int)


class Input(NamedTuple):
    """An image of a source, which :class:`Predictor` takes.

    Attributes:
        source: where it comes from.
        frame: its number from 0 on; None for an image file.
        image: the path of the file, or the frame.
        rate: frames per second of the source; 0 for an image file.
    """

    source: Source
    frame: Optional[int]
    image: Union[str, Image.Image]
    rate: float = 0.0

    @property
    def name(self) -> str:
        return self.source.name if self.frame is None else f"{self.source.name}, frame {self.frame}"


#: Called with what cannot be used: its name, and the reason.
Failed = Callable[[str, UserError], None]


def split_overrides(words: Sequence[str]) -> Tuple[List[str], List[str]]:
    """Split a command line's words into what to predict on and the KEY VALUE pairs after it.

    The pairs start at the first configuration key, or word that begins like one, ``MODEL.`` for instance,
    and is not a file.
    """
    cfg = default_config()
    keys = {key for key, _ in flatten(cfg)}
    for i, word in enumerate(words):
        section, dot, _ = word.partition(".")
        if word in keys or (dot and section in cfg and not os.path.lexists(word)):
            return [*words[:i]], [*words[i:]]
    return [*words], []


def find_inputs(words: Sequence[str], without: Sequence[Path] = ()) -> List[Source]:
    """List the files and cameras that words name; nothing is read yet.

    A word is a file, a folder, of which images and videos are taken at any depth, a pattern with ``*``, ``?``
    or ``[``, where ``**`` stands for folders of any depth, or the index of a camera, which comes last. What
    is named twice is taken once.

    Args:
        without: folders that are written to. What is in them is taken from no other folder and no pattern.

    Raises:
        UserError: a word names nothing, or a file in one of those folders.
    """
    found: Dict[str, Union[str, int]] = {}
    for word in words:
        if re.fullmatch(r"\d{1,3}", word, re.ASCII) and not os.path.lexists(word):
            found[f"camera {int(word)}"] = int(word)
            continue
        for path in _files(word, without):
            found.setdefault(os.path.abspath(path), path)
    if not found:
        raise UserError("nothing to predict on is named; give images, folders, patterns, videos or a camera")
    used: Set[str] = set()
    sources = []
    for place in sorted(found.values(), key=lambda place: isinstance(place, int)):  # cameras end by Ctrl-C
        if isinstance(place, int):
            name, stem, moves = f"camera {place}", f"camera-{place}", True
        else:
            for folder in without:
                if os.path.realpath(os.path.dirname(place)) == os.path.realpath(folder):
                    raise UserError(f"{place} is in {folder}, which is written to; name another folder")
            name, stem, moves = place, Path(place).stem, _extension(place) in VIDEOS
        sources.append(Source(name, place, moves, unused_name(stem, "", used)))
    return sources


def _files(word: str, without: Sequence[Path]) -> List[str]:
    """List the files of a word; those of a folder by their extensions."""
    known = (*EXTENSIONS, *VIDEOS)
    if os.path.isdir(word):
        seen = {os.path.realpath(folder) for folder in without} - {os.path.realpath(word)}
        paths = [path for path in files_below(word, seen) if _extension(path) in known]
        if not paths:
            raise UserError(
                f"there are no images or videos in {word}; they are files named {', '.join(known)}"
            )
        return paths
    if os.path.lexists(word) or not any(mark in word for mark in _MARKS):
        return [str(check_readable(word))]
    matches = [p for p in sorted(glob.glob(word, recursive=True)) if not any(lies_in(p, f) for f in without)]
    paths = [path for path in matches if not os.path.isdir(path)]
    if "**" not in word:  # which matches also what is in the folders
        for folder in filter(os.path.isdir, matches):
            with suppress(UserError):  # it holds none
                paths += _files(folder, without)
    if not paths:
        raise UserError(f"no file matches {word!r}; correct the pattern, or name a folder")
    return paths


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def count_images(sources: Iterable[Source]) -> Optional[int]:
    """Return the number of images and frames by the headers of videos; None with a camera."""
    total = 0
    for source in sources:
        if source.is_camera:
            return None
        if not source.moves:
            total += 1
            continue
        with suppress(UserError), closing(Video(source.place)) as video:  # said when it is its turn
            total += video.count
    return total


def read_inputs(sources: Iterable[Source], failed: Failed) -> Iterator[Input]:
    """Yield the images of all sources in their order: paths of files, which are not opened, and frames.

    Args:
        failed: called with a frame that is damaged, and a video that cannot be opened or ends too early.
    """
    for source in sources:
        if not source.moves:
            yield Input(source, None, str(source.place))
            continue
        try:
            with closing(Video(source.place)) as video:
                for number, frame in enumerate(video):
                    if frame is None:
                        failed(f"{source.name}, frame {number}", UserError("it is damaged"))
                    else:
                        yield Input(source, number, Image.fromarray(frame), video.rate)
        except UserError as e:
            failed(source.name, e)
