"""Do the options of the command fit together, and which files does it write?"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Optional, Tuple

from detectron2.config import CfgNode

from ..engine.preflight import check_output
from ..errors import UserError
from ..files import check_writable
from .formats import EXTENSIONS, check_packages


def find_targets(args: Namespace, cfg: CfgNode) -> Tuple[Path, Optional[Path]]:
    """Return the file to write, and with ``--int8`` the one beside it, or None.

    Raises:
        UserError: options contradict each other, a package is missing, a file is there or cannot be written.
    """
    backbone = args.part == "backbone"
    for option in ("int8", "openvino"):
        if getattr(args, option) and args.format != "onnx":
            raise UserError(f"--{option} needs --format onnx, got {args.format}")
    if args.openvino and not (args.evaluate or args.time):
        raise UserError("--openvino has an effect on --evaluate and --time; add one of them")
    if args.calibrate and not args.int8:
        raise UserError("--calibrate is for --int8; add it")
    if backbone and (args.evaluate or args.time):
        raise UserError("--evaluate and --time are for whole models; leave out --part backbone")
    check_packages(args.format, args.openvino)
    if not args.output:
        check_output(cfg)
    extension = EXTENSIONS[args.format]
    name = "backbone" if backbone else "model"
    named = args.output or Path(cfg.OUTPUT_DIR, "export", f"{name}{extension}")
    target = check_writable(named)
    if target.suffix != extension:
        raise UserError(f"--output {named} must end in {extension} for --format {args.format}")
    int8 = check_writable(target.with_name(f"{target.stem}_int8.onnx")) if args.int8 else None
    if int8 == target:
        raise UserError(
            f"--output {named} and the file in 8-bit integers are the same file, {int8}; name another"
        )
    for file in filter(None, (target, int8)):
        if file.exists() and not args.overwrite:
            raise UserError(f"{file} already exists; --overwrite replaces it, or name another in --output")
    return target, int8
