"""Normalisation layers by name, with errors that name the norm."""

from __future__ import annotations

from typing import Callable, Optional, Union

from detectron2 import layers
from torch import nn

from ..errors import OptionError

#: A name that :func:`detectron2.layers.get_norm` knows, or a function from channels to a module.
Norm = Union[str, Callable[[int], nn.Module]]
#: The names.
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "naiveSyncBN", "naiveSyncBN_N", "nnSyncBN")


def get_norm(norm: Norm, channels: int) -> Optional[nn.Module]:
    """detectron2's norm of that name for maps of ``channels`` channels; None for ``""``.

    Raises:
        OptionError: the name is unknown, or the norm cannot divide this many channels.
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
    """The norm of the pooled (N, channels, 1, 1) vector inside Split-Attention; Identity for ``""``.

    GroupNorm by name has 32 groups, which on a 1x1 map of 32 channels leaves one value per group: its
    output would be constant. Here it gets one group per cardinal group, so that it works for any batch
    size. All other norms are detectron2's.
    """
    if norm == "GN":
        return nn.GroupNorm(groups, channels)
    return get_norm(norm, channels) or nn.Identity()
