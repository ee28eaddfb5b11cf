"""Check for numbers that no trained network has, and for types that weights cannot have."""

from __future__ import annotations

import logging
import math
import re
from typing import Any, Dict, Iterable, Iterator, Mapping, Optional, Tuple

from detectron2.utils.logger import log_first_n
from torch import Tensor

from .read import WeightsError

#: No weight of a trained network comes near this. Variances are squares, and may reach its square.
_LARGEST = 1e10
#: detectron2 before version 0.6 subtracts its epsilon, which is this, from variances of frozen norms.
_LEAST_VARIANCE = -1e-5
_REMEDY = "take an earlier checkpoint or another file"
#: Parameters and statistics of norms, also by Caffe2's names.
_WEIGHTS = re.compile(r"(^|\.)(weight|bias|running_mean|running_var)$|^[^.]+_(w|b|s|rm|riv)$")
#: Keys of a checkpoint with the state of the optimizer, the scaler and the learning rate schedule.
_STATES = (("trainer", "_trainer"), ("trainer", "hooks", "LRScheduler"))


def check_numbers(state: Mapping[str, Tensor], file: str, excepted: Iterable[str] = ()) -> None:
    """Raise WeightsError where a tensor of ``file`` holds numbers that no trained network has.

    Args:
        excepted: names that are not checked.
    """
    for key, reason in wrong_numbers(state).items():
        if key not in excepted:
            raise WeightsError(file, f"is damaged: {key} {reason}", _REMEDY)


def check_checkpoint(content: Mapping[str, Any], file: str, excepted: Iterable[str] = ()) -> None:
    """Raise WeightsError where weights or training state of a checkpoint hold impossible numbers.

    Args:
        content: of the file, whatever it is.
    """
    model = content.get("model")
    if isinstance(model, Mapping):
        check_numbers({str(k): v for k, v in model.items() if isinstance(v, Tensor)}, file, excepted)
    for path in _STATES:
        state: Any = content
        for key in path:
            state = state.get(key) if isinstance(state, Mapping) else None
        for name, value in _leaves(state, ".".join(path)):
            if not _is_finite(value):
                raise WeightsError(file, f"is damaged: {name} holds numbers that are not finite", _REMEDY)


def wrong_numbers(state: Mapping[str, Tensor]) -> Dict[str, str]:
    """Names of tensors with numbers that no trained network has, mapped to what they hold."""
    found = ((key, _wrong(key, value)) for key, value in state.items() if value.is_floating_point())
    return {key: reason for key, reason in found if reason is not None}


def check_types(weights: Mapping[str, Tensor], file: str) -> None:
    """Raise WeightsError if weights are not floating point. Mere oddities are logged once."""
    named = {key: value for key, value in weights.items() if _WEIGHTS.search(key)}
    for key, value in named.items():
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise WeightsError(file, f"holds {key} as {kind}", "save the weights in floating point")
    short = [key for key, value in named.items() if value.element_size() == 1]
    if short:
        _warn(f"{file} holds {short[0]} as {named[short[0]].dtype}: 8 bits are few for weights")
    kernels = [value for value in named.values() if value.dim() > 1]
    if kernels and not any(_whole(value).any() for value in kernels):
        _warn(f"{file} holds nothing but zeros for the weights of {len(kernels)} layers")


def _wrong(key: str, value: Tensor) -> Optional[str]:
    if not value.numel():
        return None
    low, high = (extreme.item() for extreme in _whole(value).aminmax())  # NaN where there is one
    if not (math.isfinite(low) and math.isfinite(high)):
        return "holds numbers that are not finite"
    is_variance = key.endswith("running_var")
    if is_variance and low < _LEAST_VARIANCE:
        return f"holds the negative variance {low:.3g}"
    if max(-low, high) > (_LARGEST**2 if is_variance else _LARGEST):
        return f"holds {low if -low > high else high:.3g}, which no trained network has"
    return None


def _whole(value: Tensor) -> Tensor:
    """The tensor in a type that has extremes and can be tested; those of one byte have not."""
    return value if value.element_size() > 1 else value.float()


def _leaves(value: Any, name: str) -> Iterator[Tuple[str, Any]]:
    """What nested containers hold, with its place. A malformed file may contain itself."""
    left, seen = [(name, value)], set()
    while left:
        name, value = left.pop()
        if not isinstance(value, (Mapping, list, tuple)):
            yield name, value
        elif id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            left += [(f"{name}.{key}", part) for key, part in items]


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(_whole(value).isfinite().all())
    return not isinstance(value, float) or math.isfinite(value)


def _warn(message: str) -> None:
    log_first_n(logging.WARNING, message, name=__name__, key="message")
