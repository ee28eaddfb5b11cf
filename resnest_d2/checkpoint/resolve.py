"""Find ``resnest://NAME`` weights on this machine, or fetch, verify and cache them."""

from __future__ import annotations

import hashlib
import http.client
import logging
import math
import os
import re
import shutil
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple
from urllib.parse import quote

import portalocker
import torch
from detectron2.utils.logger import log_first_n
from iopath.common.file_io import PathHandler, file_lock, get_cache_dir
from tqdm import tqdm

from ..errors import UserError, nearest, one_line
from ..files import atomic_write_text, atomic_writer, check_readable, check_writable, writing
from ..published import TRAINED
from ..published.backbones import BACKBONES, HUB_URL, OFFICIAL_URL, PretrainedWeights
from .convert import convert
from .read import WeightsError, damage, read_weights

logger = logging.getLogger(__name__)

#: Environment variable that names a folder of weight files.
FOLDER_VARIABLE = "RESNEST_D2_WEIGHTS"
#: Seconds for which a server may stay silent or below the minimum rate.
TIMEOUT = 30
#: Minimum rate in bytes per second, at which the smallest file takes 11 hours.
_LEAST_RATE = 1000
#: Seconds after which waiting for another process is logged.
_PATIENCE = 10
#: Largest download in bytes, far above any weights, since a server may never stop sending.
_MOST_BYTES = 1 << 34


class WeightsHandler(PathHandler):
    """Path handler for files of weights: subclasses say where one is, and whether there is one."""

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return self._isfile(path)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering)


class ResNeStHandler(WeightsHandler):
    """Path handler for ``resnest://NAME`` in detectron2's PathManager.

    NAME is one of :data:`BACKBONES`, or a configuration of :data:`TRAINED`, meaning its trained model.
    The order of search is the folder that RESNEST_D2_WEIGHTS names, the cache, the authors' release assets,
    the Hugging Face hub. Trained models are no longer served anywhere, so they must be in the folder or
    the cache.

    Args:
        cache: folder for downloaded and converted files; None for ``resnest_d2`` in iopath's cache,
            which is ``~/.torch/iopath_cache`` unless $FVCORE_CACHE says otherwise.
        official_url: URL of the authors' files.
        hub_url: URL of a hub model's weights, for :func:`hub_link`.
    """

    PREFIX = "resnest://"

    def __init__(
        self,
        cache: Optional[Path] = None,
        official_url: str = OFFICIAL_URL,
        hub_url: str = HUB_URL,
    ) -> None:
        super().__init__()
        self._cache, self.official_url, self.hub_url = cache, official_url, hub_url

    @property
    def cache(self) -> Path:
        return Path(self._cache or Path(get_cache_dir()) / "resnest_d2")

    def _get_supported_prefixes(self) -> List[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """Return a file that detectron2's stock checkpointer loads into a model with this backbone.

        Raises:
            UserError: the name is unknown, or the weights are not found or are damaged.
        """
        return str(self.resolve(path[len(self.PREFIX) :]))

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return path[len(self.PREFIX) :] in self.names()

    def names(self) -> List[str]:
        """List the names that may follow the prefix."""
        return [*BACKBONES, *(name for name, row in TRAINED.items() if row.released)]

    def name_of(self, file: str) -> Optional[str]:
        """Return the name of the weights that may be in a file of that name, or None."""
        return next((name for name in self.names() if file in self._files(name)), None)

    def find(self, name: str, kept: Optional[Path] = None) -> Optional[Path]:
        """Return the local file of a weight, or None. Nothing is fetched.

        Args:
            kept: another possible path. A file with the same file name comes first in every folder.

        Raises:
            UserError: there is no such name.
        """
        return next(self._found(name, kept), None)

    def resolve(self, name: str, kept: Optional[Path] = None) -> Path:
        """Return the converted file of a weight, fetching it if necessary. For arguments see :meth:`find`.

        A damaged file that was fetched before is removed and fetched again.

        Raises:
            UserError: there is no such name, the weights are not found, or the user's own file is damaged or
                of another network.
        """
        for source in self._found(name, kept):
            try:
                return self._checked(name, source)
            except WeightsError as e:
                if source.parent == _folder():
                    raise
                logger.warning("%s; it is removed", e)
                source.unlink(missing_ok=True)
        return self._checked(name, *self._fetch(name))

    def _found(self, name: str, kept: Optional[Path]) -> Iterator[Path]:
        files, places = self._files(name), [self.cache]
        folder = _folder()
        if folder:
            places.insert(0, folder)
        if kept:
            files.insert(0, kept.name)
            places.append(kept.parent)
        for place in places:
            present = Path.exists if place == folder else Path.is_file  # never ignore the user's own
            yield from filter(present, (place / file for file in files))

    def _files(self, name: str) -> List[str]:
        if name in TRAINED and TRAINED[name].released:
            return [TRAINED[name].released, f"{name}.pth"]
        if name in BACKBONES:
            return [*BACKBONES[name].files, f"{name}.safetensors", f"{name}.pth"]
        hint = nearest(name, self.names(), limit=len(BACKBONES))
        raise UserError(f"MODEL.WEIGHTS: there is no {self.PREFIX}{name}; {hint}")

    def _fetch(self, name: str) -> Tuple[Path, Optional[Dict[str, Any]]]:
        """Return the fetched file, and its converted content unless another process has fetched it."""
        record = BACKBONES.get(name, PretrainedWeights())
        sources = []
        if record.official:
            sources.append((self.official_url + record.official, record.official))
        if record.hub:
            sources.append((hub_link(record.hub, url=self.hub_url), f"{name}.safetensors"))
        failures: List[str] = []
        content: List[Dict[str, Any]] = []
        for url, file in sources:
            try:
                path = download(url, self.cache / file, lambda path: content.append(_read(name, path)))
                return path, content[0] if content else None
            except TransferError as e:
                failures.append(f"{url}: {e}")
                logger.warning("Cannot fetch %s (%s)", url, e)
        wanted, *_ = self._files(name)
        where = f"from {sources[0][0]}" if sources else "which is no longer served anywhere,"
        tried = f" Tried {'; '.join(failures)}." if failures else ""
        raise UserError(
            f"MODEL.WEIGHTS: {self.PREFIX}{name} is not on this machine. Put {wanted} {where} into "
            f"{self.cache} or the folder that {FOLDER_VARIABLE} names.{tried}"
        )

    def _checked(self, name: str, source: Path, content: Optional[Dict[str, Any]] = None) -> Path:
        """Return the file to load for ``source``: itself, or for a backbone its converted copy in the cache.

        The copy, or for a detector a note, shows that the file has been checked and need not be read again.

        Args:
            content: converted content of the file, if already read.
        """
        stem = Path(name).name
        if name in TRAINED:
            note = self.cache / f"{_stem(stem, source)}.checked"
            if not note.is_file():
                _check_hash(source, source.name)
                with suppress(UserError):  # works without a cache
                    atomic_write_text(note, f"{source}\n")
            return source

        def read() -> Dict[str, Any]:
            if content is not None:
                return content
            _check_hash(source, source.name)
            return _read(name, source)

        return stock_copy(source, stem, self.cache, read)


def stock_copy(source: Path, name: str, cache: Path, read: Callable[[], Dict[str, Any]]) -> Path:
    """Return the cached copy of a file that detectron2's stock checkpointer loads, made if there is none.

    Args:
        name: start of its file name.
        read: returns the converted content of the file.
    """
    target = cache / f"{_stem(name, source)}.d2.pth"
    if not target.is_file() or damage(target):
        content = read()
        with atomic_writer(target) as file:
            torch.save(content, file)
        logger.info("Converted %s to %s", source, target)
    return target


def _stem(name: str, source: Path) -> str:
    """Return a file name for what was made of a file, which changes with it."""
    stat = check_readable(source).stat()
    identity = f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    return f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def hub_link(model: str, revision: str = "main", url: str = HUB_URL) -> str:
    """Return the address of a model's weights on the Hugging Face hub, or the mirror that HF_ENDPOINT names.

    Args:
        model: its id.
        revision: branch, tag or commit.
        url: the address, with ``{endpoint}``, ``{model}`` and ``{revision}``.
    """
    endpoint = (os.getenv("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    return url.format(endpoint=endpoint, model=model, revision=quote(revision, safe=""))


class TransferError(Exception):
    """A file could not be fetched, for a reason other than this machine's disk."""


def download(url: str, target: Path, check: Callable[[Path], object] = lambda path: None) -> Path:
    """Fetch ``url`` into ``target``, which appears complete and verified or not at all.

    If several processes request the same target, one of them fetches it. Eight hex digits at the end of the
    target's stem must be the start of its SHA-256 or SHA-1.

    Args:
        check: raises WeightsError if the fetched file is not as expected.

    Raises:
        TransferError: no answer, a bad answer, a broken, slow or incomplete transfer, a wrong hash or file.
        UserError: the file cannot be written, or another process has been fetching it for an hour.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if not target.is_file():
                for stale in target.parent.glob(f".{target.name}-*"):  # left by a killed download
                    stale.unlink()
                with atomic_writer(target) as file:
                    for chunk in _chunks(url, target):
                        file.write(chunk)
                    file.flush()
                    try:
                        _check_hash(Path(file.name), target.name)
                        check(Path(file.name))
                    except WeightsError as e:
                        raise TransferError(f"what was sent {e.reason}") from e
    return target


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Context that one process at a time can enter for a target, by iopath's lock. Long waits are logged."""
    place = check_writable(f"{target}.lock", "remove it", in_place=True)  # opening a FIFO would block forever
    lock = file_lock(str(target))
    try:
        try:
            lock.acquire(timeout=_PATIENCE)
        except portalocker.LockException:
            logger.warning("Waiting for another process, which holds %s and fetches %s", place, target.name)
            lock.acquire()
    except portalocker.LockException as e:
        reason = one_line(e) or "another process holds it"
        raise UserError(f"cannot lock {place} ({reason}); end what holds it, or set FVCORE_CACHE") from None
    try:
        yield
    finally:
        lock.release()


def _chunks(url: str, target: Path) -> Iterator[bytes]:
    """Yield what a server sends, with a progress bar, while there is disk space beside the target."""
    disk = shutil.disk_usage(target.parent)
    room = disk.free if disk.total else math.inf  # some network file systems do not report it
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "resnest_d2"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            if response.status != 200:  # 206 is partial content
                raise TransferError(f"HTTP status {response.status} {response.reason}")
            size, received = int(response.headers.get("Content-Length") or 0), 0
            with tqdm(total=size or None, unit="B", unit_scale=True, desc=target.name) as progress:
                begun, before = time.monotonic(), 0
                while chunk := response.read1(1 << 20):  # what has arrived; read would wait for all
                    received += len(chunk)
                    progress.update(len(chunk))
                    if max(size, received) > _MOST_BYTES:
                        raise TransferError(f"more than {_MOST_BYTES} bytes, which no weights have")
                    if max(size, received) > room:
                        raise UserError(
                            f"cannot write {target}: {max(size, received)} bytes are needed, and {room} are "
                            f"free in {target.parent}; make room, or name another cache in FVCORE_CACHE"
                        )
                    yield chunk
                    if time.monotonic() - begun >= TIMEOUT:
                        if received - before < _LEAST_RATE * TIMEOUT:
                            raise TransferError(f"less than {_LEAST_RATE} bytes per second")
                        begun, before = time.monotonic(), received
        if size and received != size:
            raise TransferError(f"connection ended after {received} of {size} bytes")
    except UserError:
        raise
    except http.client.HTTPException as e:
        raise TransferError(f"bad answer ({type(e).__name__} {e})") from e
    except (OSError, ValueError) as e:
        raise TransferError(str(e)) from e


def _folder() -> Optional[Path]:
    """Return the user's own folder of weight files."""
    folder = os.path.expanduser(os.getenv(FOLDER_VARIABLE, ""))
    if folder and not os.path.isdir(folder):
        message = f"{FOLDER_VARIABLE} names {folder}, which is not a folder"
        log_first_n(logging.WARNING, message, name=__name__, key="message")
    return Path(folder) if folder else None


def _read(name: str, path: Path) -> Dict[str, Any]:
    """Read and convert the weights of that name in a file.

    Raises:
        WeightsError: the weights cannot be read, or are not of a backbone of that name.
    """
    conversion = convert(read_weights(path), str(path))
    if conversion.is_detector:
        raise WeightsError(path, f"holds a whole detector, not {name}", "name the file in MODEL.WEIGHTS")
    conversion.check_complete(str(path))
    options = {key: conversion.options[key] for key in ("depth", "radix", "cardinality", "bottleneck_width")}
    wanted = _options_of(name)
    if any(options[key] != value for key, value in wanted.items()):
        is_of = f"it is of {_in_words(options)}"
        raise WeightsError(path, f"is not {name}, a ResNeSt of {_in_words(wanted)}", is_of)
    return conversion.checkpoint()


def _options_of(name: str) -> Dict[str, int]:
    """Parse the options of :class:`ResNeSt` in the name of a backbone; empty if there are none."""
    match = re.fullmatch(r"resnest(\d+)(?:_fast_(\d)s(\d)x(\d+)d)?", name)
    if match is None:
        return {}
    numbers = match[1], match[2] or 2, match[3] or 1, match[4] or 64
    return dict(zip(("depth", "radix", "cardinality", "bottleneck_width"), map(int, numbers)))


def _in_words(options: Dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())


def _check_hash(path: Path, name: str) -> None:
    """Raise WeightsError if a file's name contains the start of a hash that its content does not match."""
    expected = re.search(r"-([0-9a-f]{8})\.\w+$", name)
    if expected is None:
        return
    digests = {"SHA-256": hashlib.sha256(), "SHA-1": hashlib.sha1()}  # the latter in PyTorch-Encoding's names
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            for digest in digests.values():
                digest.update(chunk)
    found = {kind: digest.hexdigest()[:8] for kind, digest in digests.items()}
    if expected[1] not in found.values():
        hashes = " and ".join(f"{kind} starts with {digest}" for kind, digest in found.items())
        reason = f"its {hashes}, not {expected[1]}"
        raise WeightsError(path, f"is damaged: {reason}", "remove it or fetch it again")
