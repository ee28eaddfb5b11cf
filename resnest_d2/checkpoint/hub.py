"""``hf://USER/NAME[@REVISION]``: weights that others have shared on the Hugging Face hub."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import Any, List, Optional, Tuple
from urllib.parse import quote, urlsplit

from iopath.common.file_io import get_cache_dir

from ..errors import UserError
from ..files import check_readable
from .convert import as_checkpoint
from .read import read_weights
from .resolve import TransferError, WeightsHandler, download, hub_link, stock_copy

logger = logging.getLogger(__name__)

#: The file of a model's weights on the hub.
FILE = "model.safetensors"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_MODEL = re.compile(f"{_NAME}/{_NAME}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,79}")


class HubHandler(WeightsHandler):
    """Path handler for ``hf://USER/NAME[@REVISION]`` in detectron2's PathManager.

    A revision is a branch, a tag or a commit; ``main`` by default. A file in huggingface_hub's own cache
    comes first, since ``hf download`` can fetch private models. Others are fetched without that package, as
    ``resnest://`` weights are, and stay in the cache.

    Args:
        cache: folder for fetched and converted files; None for ``hub`` in iopath's cache.
    """

    PREFIX = "hf://"

    def __init__(self, cache: Optional[Path] = None) -> None:
        super().__init__()
        self._cache = cache

    @property
    def cache(self) -> Path:
        return Path(self._cache or Path(get_cache_dir()) / "hub")

    def _get_supported_prefixes(self) -> List[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """Return a file that detectron2's stock checkpointer loads. A log line says where it came from.

        Raises:
            UserError: the name is malformed, the file cannot be fetched, or holds no weights.
        """
        model, revision = _parsed(path)
        source = check_readable(_of_huggingface(model, revision) or self._fetched(path, model, revision))
        date = time.strftime("%Y-%m-%d", time.localtime(source.stat().st_mtime))
        logger.info("%s was fetched on %s; remove %s to fetch it anew", path, date, source)
        name = f"{model}-{revision}".replace("/", "--")[:100]
        return str(
            stock_copy(source, name, self.cache, lambda: as_checkpoint(read_weights(source), str(source)))
        )

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        try:
            return Path(self._get_local_path(path)).is_file()
        except UserError:
            return False

    def _fetched(self, path: str, model: str, revision: str) -> Path:
        link = hub_link(model, revision)
        host = quote(urlsplit(link).netloc, safe="")
        kept = self.cache / host / model / quote(revision, safe="") / FILE
        try:
            return download(link, kept, read_weights)
        except TransferError as e:
            raise UserError(
                f"MODEL.WEIGHTS: cannot get {path} ({link}: {e}); correct the name or the revision, fetch a "
                f"private model with `hf download {model}`, or put the file at {kept}"
            ) from None


def check_model_name(option: str, name: str) -> str:
    """Return ``name`` if it is one of a model on the hub: USER/NAME.

    Args:
        option: flag or key, for the error message.

    Raises:
        UserError: it is none.
    """
    if not _MODEL.fullmatch(name) or ".." in name or "--" in name or name.endswith(".git"):
        raise UserError(f"{option} must name a model on the hub as USER/NAME, got {name!r:.200}")
    return name


def _parsed(link: str) -> Tuple[str, str]:
    name, at, revision = link.removeprefix(HubHandler.PREFIX).partition("@")
    check_model_name(f"MODEL.WEIGHTS {HubHandler.PREFIX}USER/NAME[@REVISION]", name)
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UserError(f"MODEL.WEIGHTS: {link!r:.300} must name a branch, tag or commit after the @")
    return name, revision if at else "main"


def _of_huggingface(model: str, revision: str) -> Optional[Path]:
    """Return the file in huggingface_hub's cache, if that is installed and has it."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(model, FILE, revision=revision)
    return Path(found) if isinstance(found, str) else None
