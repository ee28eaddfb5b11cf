"""Turn MODEL.WEIGHTS into a path: fetch links, and resolve those of the released YAML files by name."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any, List
from urllib.parse import urlsplit

from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from iopath.common.file_io import get_cache_dir

from ..errors import UserError, one_line
from ..files import check_link, check_readable
from .hub import HubHandler
from .read import read_weights
from .resolve import TIMEOUT, ResNeStHandler, TransferError, WeightsHandler, download

_SCRATCH = 'MODEL.WEIGHTS "" trains from scratch'
_ELSEWHERE = "fetch it elsewhere and name the local file"
_LONGEST_NAME = 200  # of a file, whose name gets a suffix while it is fetched


class LinkHandler(WeightsHandler):
    """Path handler for links to the host that served the authors' weights until 2021.

    A link stands for the ``resnest://`` weights whose records contain its file name. A file of exactly that
    name is preferred, even one that detectron2 cached while it was still served. PathManager prefers longer
    prefixes, so other links are not affected.

    Args:
        weights: finds weights by name.
    """

    PREFIXES = tuple(f"{scheme}://s3.us-west-1.wasabisys.com/resnest/" for scheme in ("https", "http"))

    def __init__(self, weights: ResNeStHandler) -> None:
        super().__init__()
        self.weights = weights

    def _get_supported_prefixes(self) -> List[str]:
        return list(self.PREFIXES)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """Like :class:`ResNeStHandler`'s; a log line says once which file replaces the link.

        Raises:
            UserError: no record has the file name, or the weights are not found or are damaged.
        """
        kept = _kept(path)
        name = self.weights.name_of(kept.name)
        if name is None:
            raise UserError(
                f"MODEL.WEIGHTS: {path}: its host is gone, and no weights named {kept.name} are known; "
                f"name a file, or {ResNeStHandler.PREFIX}NAME with one of {', '.join(self.weights.names())}"
            )
        try:
            local = self.weights.resolve(name, kept)
        except UserError as e:
            reason = str(e).removeprefix("MODEL.WEIGHTS: ")
            raise UserError(f"MODEL.WEIGHTS: {path}: its host is gone, and {reason}") from None
        log_first_n(
            logging.WARNING,
            f"{path}: its host is gone; {ResNeStHandler.PREFIX}{name} replaces it, "
            f"{self.weights.find(name, kept)}",
            name=__name__,
            key="message",
        )
        return str(local)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self.weights.name_of(_kept(path).name) is not None


def is_link(weights: str) -> bool:
    """Whether MODEL.WEIGHTS is a link to fetch, and not one of :class:`LinkHandler`."""
    name = weights.lower()
    return name.startswith(("http://", "https://")) and not name.startswith(LinkHandler.PREFIXES)


def local_weights(weights: str) -> Path:
    """Return the local file that MODEL.WEIGHTS stands for, fetching and caching it if necessary.

    Raises:
        UserError: there is none, it cannot be fetched, or it is not a regular file.
    """
    if any(ord(letter) < 32 for letter in weights):
        raise UserError(f"MODEL.WEIGHTS {weights!r} is not a file name; {_SCRATCH}")
    check_link("MODEL.WEIGHTS", weights)
    if is_link(weights):
        return fetched(weights)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # for handlers that set no timeout
    try:
        path = PathManager.get_local_path(weights.partition("?")[0])  # detectron2 treats the rest as a query
    except UserError:
        raise
    except Exception as e:  # from any handler of the prefix
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
    """Return the file that a link leads to, from the cache or fetched.

    iopath's own handler would mix up files of the same name from different hosts, set no time limit, and
    keep partial files and files that are not weights.

    Args:
        weights: a link, with or without detectron2's query.

    Raises:
        UserError: the link cannot be fetched, or does not lead to weights.
    """
    check_link("MODEL.WEIGHTS", weights)
    link, _, query = weights.partition("?")
    try:
        address = urlsplit(link)
        if "@" in address.netloc:  # must not be printed
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
    """Register ``resnest://``, ``hf://`` and the released links with detectron2."""
    weights = ResNeStHandler()
    for handler in (weights, HubHandler(), LinkHandler(weights)):
        PathManager.register_handler(handler, allow_override=True)


def _kept(link: str) -> Path:
    """Return the path where iopath's own handler would cache a link's file."""
    return Path(get_cache_dir(), urlsplit(link).path.lstrip("/"))
