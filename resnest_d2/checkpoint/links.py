"""The links of the released YAML files, whose host is gone, resolved as ``resnest://`` is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, List
from urllib.parse import urlsplit

from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from iopath.common.file_io import PathHandler, get_cache_dir

from ..errors import UserError
from .resolve import ResNeStHandler


class LinkHandler(PathHandler):
    """Path handler of links to the host that served the authors' weights until 2021.

    A link stands for the weights of ``resnest://`` whose records hold its file name; a file of that very
    name is taken first, be it the one that detectron2 kept when it was still served. PathManager prefers the
    longer prefix, so links elsewhere stay what they were.

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
        """As of :class:`ResNeStHandler`; a line of the log says, once, what stands for the link.

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


def register_handlers() -> None:
    """Make ``resnest://`` and the released links known to detectron2."""
    weights = ResNeStHandler()
    for handler in (weights, LinkHandler(weights)):
        PathManager.register_handler(handler, allow_override=True)


def _kept(link: str) -> Path:
    """Where iopath's handler of links keeps the file of this one."""
    return Path(get_cache_dir(), urlsplit(link).path.lstrip("/"))
