"""Normalisation layers by name, with error messages that name the norm."""

from __future__ import annotations

from typing import Callable, Optional, Union

from detectron2 import layers
from torch import nn

from ..errors import OptionError

#: A name that :func:`detectron2.layers.get_norm` knows, or a function from channels to a module.
Norm = Union[str, Callable[[int], nn.Module]]
#: The known names.
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "naiveSyncBN", "naiveSyncBN_N", "nnSyncBN")


def get_norm(norm: Norm, channels: int) -> Optional[nn.Module]:
    """Return detectron2's norm of this name for maps with ``channels`` channels; None for ``""``.

    Raises:
        OptionError: the name is unknown, or the norm cannot divide this number of channels.
    """
    try:
        if norm is not None and not isinstance(norm, str) and not callable(norm):
            raise KeyError(norm)
        return layers.get_norm(norm, channels)
    except KeyError:
        known = ", ".join(name or '""' for name in NORMS)
        raise OptionError("norm", norm, f"must be one of {known}") from None
    except ValueError as e:  # GroupNorm with its 32 groups
        raise OptionError("norm", norm, f"does not fit {channels} channels ({e}); use BN") from None


def get_pooled_norm(norm: Norm, channels: int, groups: int) -> nn.Module:
    """Return the norm of a map pooled to (N, channels, 1, 1); Identity for ``""``.

    detectron2's ``GN`` has 32 groups. On a 1x1 map of 32 channels each would hold one value, and its output
    would be constant. Here it has ``groups``, inside Split-Attention one per cardinal group, so that it works
    for any batch size. All other norms are detectron2's.
    """
    if norm == "GN":
        return nn.GroupNorm(groups, channels)
    return get_norm(norm, channels) or nn.Identity()
