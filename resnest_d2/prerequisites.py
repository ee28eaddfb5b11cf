"""Check what must be installed before this package can be imported."""

from __future__ import annotations

import shlex
import sys
import warnings
from importlib import metadata
from pathlib import Path

_DETECTRON2 = (
    "resnest_d2 needs detectron2, which is not installed. Build it from source "
    "(https://detectron2.readthedocs.io/tutorials/install.html), or, without a compiler: pip install {needs} "
    "&& pip install --no-deps --only-binary=:all: --python-version 3.10 --target "
    '"$(python -c \'import sysconfig; print(sysconfig.get_path("purelib"))\')" sal-detectron2==0.7.2'
)


def met() -> bool:
    """Whether to import the package, except for ``collect_env``, which reports what cannot be imported.

    Raises:
        ImportError: as in :func:`check`.
        SystemExit: the same in this package's command lines, which end with one line and status 2.
    """
    command = _command()
    if command == f"{__package__}.collect_env":
        return False
    try:
        check()
    except ImportError as e:
        if not command:
            raise
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None
    return True


def check() -> None:
    """Raise ImportError, with a message for users, if detectron2 or torchvision cannot be imported."""
    if sys.flags.optimize > 1:  # detectron2 extends docstrings on import
        raise ImportError("detectron2 needs docstrings, which python -OO drops; use python -O")
    if any(action == "error" and kind is Warning for action, _, kind, _, _ in warnings.filters):
        # Warnings as errors are meant for the user's own code, but these packages warn on import.
        warnings.filterwarnings("default", module=r"(torch|torchvision|detectron2|fvcore|iopath)\b")
    try:
        import detectron2  # noqa: F401
    except ModuleNotFoundError as e:
        if e.name != "detectron2":
            raise
        raise ImportError(_DETECTRON2.format(needs=_needs_of_detectron2())) from None
    try:
        import torchvision  # noqa: F401
    except Exception as e:  # a build for another torch raises RuntimeError or OSError
        import torch

        raise ImportError(
            f"resnest_d2 needs torchvision, which cannot be imported ({type(e).__name__}: {str(e)[:200]}); "
            f"install the version that matches torch {torch.__version__} (Python {sys.version.split()[0]})"
        ) from None


def _command() -> str:
    """Return this package's running command line, a module or a file in tools/; empty for other programs."""
    program = Path(sys.argv[0])
    if program.name == "-m":  # the module is still unknown, as its package is imported first
        return next((word for word in sys.orig_argv if word.startswith(f"{__package__}.")), "")
    tools = Path(__file__).resolve().parents[1] / "tools"
    return str(program) if program.suffix == ".py" and program.resolve().parent == tools else ""


def _needs_of_detectron2() -> str:
    """Return the runtime requirements of its wheel, installed without dependencies, from our extra."""
    try:
        required = [line.partition(";") for line in metadata.requires(__package__) or []]
    except metadata.PackageNotFoundError:  # an uninstalled checkout
        return shlex.quote(".[detectron2]")
    return " ".join(shlex.quote(need.strip()) for need, _, extra in required if '"detectron2"' in extra)
