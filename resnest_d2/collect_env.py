"""Collect information for a bug report: versions, devices, and what works on them.

python -m resnest_d2.collect_env
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
from importlib import import_module
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from . import prerequisites
from .errors import one_line
from .version import __version__

_broken = ""  # the error that keeps this package from being imported
try:
    prerequisites.check()
    import detectron2

    from .engine.results import environment
    from .modeling import ResNeSt, SplitAttentionConv2d, optimize_for_inference
    from .modeling.deform_conv import DeformConv2d
    from .ops import radix_weighted_sum, relu_pool, relu_weighted_sum, split_pool, triton_kernels
except Exception as e:  # report the rest anyway
    _broken = f"FAILS: {type(e).__name__}: {one_line(e)}"

#: Variables that affect execution, and whose values reveal nothing about the user.
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "TRITON_INTERPRET")
#: Largest error of the self-check in float32, relative to the largest value.
TOLERANCE = 1e-5


def processor() -> str:
    """Return the CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def collect() -> List[Tuple[str, str]]:
    """Return names and values, with those of each device below its name."""
    rows = [(name, version or "–") for name, version in _versions().items()]
    rows += [("platform", platform.platform())]
    rows += [(name, os.environ[name]) for name in _VARIABLES if name in os.environ]
    for device in _devices():
        rows += [("", ""), (str(device), _outcome(lambda d=device: _name(d)))]
        if not _broken:
            rows += _of_device(device)
    return rows


def _versions() -> Dict[str, Optional[str]]:
    if _broken:
        own = {"python": platform.python_version(), "resnest_d2": f"{__version__}, {_broken}"}
        packages = ("torch", "torchvision", "detectron2")
        return {**own, **{name: _outcome(lambda n=name: import_module(n).__version__) for name in packages}}
    here = environment(torch.device("cpu"))  # the GPUs follow separately
    others = {"detectron2": detectron2.__version__, "CUDA of torch": torch.version.cuda}
    return {**here["versions"], **others, "commit": here["commit"]}


def _devices() -> List[torch.device]:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(gpus))]


def _name(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{processor()}, {torch.get_num_threads()} threads"
    facts = torch.cuda.get_device_properties(device)
    return (
        f"{facts.name}, compute capability {facts.major}.{facts.minor}, {facts.total_memory / 2**30:.0f} GB"
    )


def _of_device(device: torch.device) -> Iterator[Tuple[str, str]]:
    yield "Split-Attention", _outcome(lambda: _implementation(device))
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    checks: Dict[str, Callable[[], str]] = {
        "  beside its reference": lambda: split_attention_error(device),
        "deformable convolution": lambda: deformable_convolution(device),
        f"mixed precision, {half}": lambda: mixed_precision(device, half),
        f"half-precision inference, {half}": lambda: half_inference(device, half),
    }
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for name, check in checks.items():
            torch.manual_seed(0)
            yield name, _outcome(check)


def _implementation(device: torch.device) -> str:
    reason = triton_kernels.unavailable(device)
    return f"plain PyTorch: {reason}" if reason else "Triton kernels"


def _outcome(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as e:  # the report must name any failure
        lines = str(e).strip().splitlines() or [""]
        return f"FAILS: {type(e).__name__}: {lines[0][:150]}"


def split_attention_error(device: torch.device) -> str:
    """Compare the path that runs on ``device`` with the reference in float64: outputs and gradients."""
    x, weights = torch.randn(2, 32, 15, 17, device=device), torch.rand(2, 32, 1, 1, device=device)
    weights = weights.view(2, 2, 16, 1, 1).softmax(1).flatten(1, 2)

    def passes(dtype: torch.dtype, own: bool) -> List[Tensor]:
        leaf = x.detach().to(dtype).requires_grad_()
        attention = weights.detach().to(dtype).requires_grad_()
        if own:
            pooled, activated = relu_pool(leaf * 1, 2)  # a leaf must not be changed in place
            out = relu_weighted_sum(activated, attention)
        else:
            y = F.relu(leaf)
            pooled, out = split_pool(y, 2), radix_weighted_sum(y, attention, 2)
        (out.square().sum() + pooled.square().sum()).backward()
        return [out.detach(), leaf.grad, attention.grad]

    pairs = zip(passes(torch.float32, True), passes(torch.float64, False))
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    if not error <= TOLERANCE:  # also catches NaN
        raise ArithmeticError(f"error {error:.1e}, more than {TOLERANCE:.0e}")
    return f"error {error:.1e}"


def deformable_convolution(device: torch.device) -> str:
    """Run forward and backward, with and without autocast."""
    layer = DeformConv2d(8, 8, padding=1).to(device)
    offset = torch.randn(1, 18, 9, 9, device=device)
    for amp in (False, True):
        with torch.autocast(device.type, enabled=amp):
            out = layer(torch.randn(1, 8, 9, 9, device=device), offset)
        out.float().sum().backward()
        _check_finite(out, layer.weight.grad)
    return "works, also in mixed precision"


def mixed_precision(device: torch.device, dtype: torch.dtype) -> str:
    """Run forward and backward of Split-Attention under autocast."""
    layer = SplitAttentionConv2d(32, 32).to(device)
    with torch.autocast(device.type, dtype):
        out = layer(torch.randn(4, 32, 9, 9, device=device))
    out.float().sum().backward()
    _check_finite(out, *(parameter.grad for parameter in layer.parameters()))
    return "works"


@torch.no_grad()
def half_inference(device: torch.device, dtype: torch.dtype) -> str:
    """Compare a small backbone after :func:`optimize_for_inference` with itself in float32."""
    model = ResNeSt(14, out_features=["res3"]).to(device).eval()
    half = optimize_for_inference(copy.deepcopy(model), dtype=dtype)
    images = torch.randn(1, 3, 64, 64, device=device)
    expected, got = model(images)["res3"], half(images)["res3"]
    _check_finite(got)
    return f"works, error {((got - expected).abs().max() / expected.abs().max()).item():.0e}"


def _check_finite(*tensors: Tensor) -> None:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ArithmeticError("not finite")


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Print :func:`collect`.

    Args:
        arguments: command line arguments; default to those of this process.
    """
    argparse.ArgumentParser(
        prog="python -m resnest_d2.collect_env",
        description="Collect information for a bug report: versions, devices, and what works on them.",
    ).parse_args(arguments)
    print(tabulate(collect(), tablefmt="plain", disable_numparse=True))


if __name__ == "__main__":
    main()
