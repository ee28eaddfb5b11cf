"""Weight files, read without running what is in them."""

from __future__ import annotations

import codecs
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import UserError

# All that a pickle of numpy arrays needs. numpy 2 moved the module; files name it as of their writing.
_NUMPY = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct
    if hasattr(np, "_core")
    else np.core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): codecs.encode,  # how protocol 2 writes bytes
}

# Some files of torch.save hold arrays; they are as harmless there.
torch.serialization.add_safe_globals(
    [
        *(_NUMPY[key] for key in _NUMPY if key[0].startswith("numpy")),
        *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int64")),
    ]
)


def read_weights(path: str) -> Dict[str, Any]:
    """The content of a file of torch.save, of safetensors, or of a pickle of numpy arrays.

    What it is decided by content, not by name.

    Raises:
        UserError: it is missing, empty, damaged, holds no dict, or is a pickle that would run code.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; fetch it again")
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as e:
        raise UserError(f"cannot read {path} ({e.strerror})") from None
    try:
        if start[8:9] == b"{":
            content = load_file(path)
        elif start[:2] == b"PK" or _is_legacy_torch(path):
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            content = read_numpy_pickle(path)
    except pickle.UnpicklingError as e:
        names = re.search(r"(?:GLOBAL|Unsupported global:(?: GLOBAL)?|class) ([\w.]+)", str(e))
        what = f" ({names[1]})" if names else ""
        if "eights only" not in str(e) and not names:
            raise UserError(f"{path} is damaged or no weight file ({e}); fetch it again") from None
        raise UserError(
            f"{path} is refused: its pickle would run code{what}, which a file of weights does not need"
        ) from None
    except (RuntimeError, SafetensorError, EOFError, OSError, ValueError, KeyError, IndexError) as e:
        reason = str(e).strip().splitlines()[0][:200] if str(e).strip() else type(e).__name__
        raise UserError(f"{path} is damaged or no weight file ({reason}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of weights")
    return content


def read_numpy_pickle(path: Path) -> Any:
    """A pickle of numpy arrays in plain containers, as detectron2's ``.pkl`` files are.

    Raises:
        pickle.UnpicklingError: it names anything else.
    """
    with Path(path).open("rb") as file:
        return _NumpyUnpickler(file, encoding="latin1").load()


class _NumpyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NUMPY[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise pickle.UnpicklingError(f"class {module}.{name} is not allowed") from None


def _is_legacy_torch(path: Path) -> bool:
    """Whether the file starts with the pickled magic number of torch.save before version 1.6."""
    try:
        with path.open("rb") as file:
            return _NumpyUnpickler(file).load() == 0x1950A86A20F9469CFC6C
    except Exception:
        return False
