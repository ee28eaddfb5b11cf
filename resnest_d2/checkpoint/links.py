"""MODEL.WEIGHTS as a local path: links are fetched, and those of the released YAML files redirected."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any, List
from urllib.parse import urlsplit

from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from iopath.common.file_io import PathHandler, get_cache_dir

from ..errors import UserError, one_line
from ..files import check_link, check_readable
from .read import read_weights
from .resolve import TIMEOUT, ResNeStHandler, TransferError, download

_SCRATCH = 'MODEL.WEIGHTS "" trains from scratch'
_ELSEWHERE = "fetch it elsewhere and name the local file"
_LONGEST_NAME = 200  # characters of a file name, of 255: it gets an ending while it is fetched


class LinkHandler(PathHandler):
    """Path handler of links to the host that served the authors' weights until 2021.

    A link stands for the ``resnest://`` weights whose records hold its file name. A local file of exactly
    that name comes first, such as the one that detectron2 cached while it was still served. PathManager
    prefers the longest prefix, so links to other hosts are not affected.

    Args:
        weights: finds them by name.
    """

    PREFIXES = tuple(f"{scheme}://s3.us-west-1.wasabisys.com/resnest/" for scheme in ("https", "http"))

    def __init__(self, weights: ResNeStHandler) -> None:
        super().__init__()
        self.weights = weights

    def _get_supported_prefixes(self) -> List[str]:
        return list(self.PREFIXES)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """As :class:`ResNeStHandler`; one line of the log says which file the link stands for.

        Raises:
            UserError: no record holds the file name, the weights are nowhere, or what was found is damaged.
        """
        kept = _kept(path)
        name = self.weights.name_of(kept.name)
        if name is None:
            raise UserError(
                f"MODEL.WEIGHTS: {path}: its host is gone, and no weights of the name {kept.name} are known; "
                f"name a file, or {ResNeStHandler.PREFIX}NAME with one of {', '.join(self.weights.names())}"
            )
        try:
            local = self.weights.resolve(name, kept)
        except UserError as e:
            reason = str(e).removeprefix("MODEL.WEIGHTS: ")
            raise UserError(f"MODEL.WEIGHTS: {path}: its host is gone, and {reason}") from None
        log_first_n(
            logging.WARNING,
            f"{path}: its host is gone; {ResNeStHandler.PREFIX}{name} stands for it, "
            f"{self.weights.find(name, kept)}",
            name=__name__,
            key="message",
        )
        return str(local)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self.weights.name_of(_kept(path).name) is not None

    _exists = _isfile

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering)


def is_link(weights: str) -> bool:
    """Whether MODEL.WEIGHTS is a link to a host that may still serve it."""
    name = weights.lower()
    return name.startswith(("http://", "https://")) and not name.startswith(LinkHandler.PREFIXES)


def local_weights(weights: str) -> Path:
    """The file on this machine that MODEL.WEIGHTS stands for, fetched and cached if necessary.

    Raises:
        UserError: there is none, it cannot be fetched, or it is no regular file.
    """
    if any(ord(letter) < 32 for letter in weights):
        raise UserError(f"MODEL.WEIGHTS {weights!r} is no name of a file; {_SCRATCH}")
    check_link("MODEL.WEIGHTS", weights)
    if is_link(weights):
        return fetched(weights)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # for handlers that set none of their own
    try:
        path = PathManager.get_local_path(weights.partition("?")[0])  # detectron2 takes the rest for a query
    except UserError:
        raise
    except Exception as e:  # of whatever handles the prefix
        raise _lost(weights, e) from None
    finally:
        socket.setdefaulttimeout(patience)
    if not os.path.exists(path):
        scheme, is_link_of, _ = weights.partition("://")
        if is_link_of:
            raise UserError(f"MODEL.WEIGHTS: {weights}: nothing here reads {scheme}://; {_ELSEWHERE}")
        raise UserError(f"MODEL.WEIGHTS: there is no file {Path(path).absolute()}; {_SCRATCH}")
    return check_readable(path, "MODEL.WEIGHTS")


def fetched(weights: str) -> Path:
    """The file that a link leads to, from the cache or fetched.

    iopath's own handler would keep files of one name from two hosts in one place, wait without limit, and
    cache what is no file of weights.

    Args:
        weights: a link, with or without detectron2's query.

    Raises:
        UserError: it cannot be fetched, or what is sent is no file of weights.
    """
    check_link("MODEL.WEIGHTS", weights)
    link, _, query = weights.partition("?")
    try:
        address = urlsplit(link)
        if "@" in address.netloc:  # which is not to be printed
            raise UserError(f"MODEL.WEIGHTS: a link with a user's name cannot be fetched; {_ELSEWHERE}")
        if query not in ("", "matching_heuristics=True"):
            raise ValueError("the only query is matching_heuristics=True")
        name = Path(address.path).name
        if not address.netloc or not name or address.path.endswith("/") or len(name) > _LONGEST_NAME:
            raise ValueError("it names no file")
        kept = Path(get_cache_dir(), "links", address.netloc.lower(), address.path.lstrip("/"))
        return check_readable(download(link, kept, read_weights), "MODEL.WEIGHTS")
    except UserError:
        raise
    except (TransferError, OSError, ValueError) as e:
        raise _lost(weights, e) from None


def _lost(weights: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {one_line(error, 200)}"
    return UserError(f"MODEL.WEIGHTS: cannot get {weights} ({reason}); {_ELSEWHERE}, or {_SCRATCH}")


def register_handlers() -> None:
    """Make ``resnest://`` and the released links known to detectron2."""
    weights = ResNeStHandler()
    for handler in (weights, LinkHandler(weights)):
        PathManager.register_handler(handler, allow_override=True)


def _kept(link: str) -> Path:
    """Where iopath's own handler of links keeps the file of a link."""
    return Path(get_cache_dir(), urlsplit(link).path.lstrip("/"))
