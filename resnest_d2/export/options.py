"""Do the options of the command fit together, and which files does it write?"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import List, Optional

from detectron2.config import CfgNode

from ..engine.preflight import check_output
from ..errors import UserError
from ..files import check_writable
from .formats import EXTENSIONS, check_packages


def find_targets(args: Namespace, cfg: CfgNode) -> List[Optional[Path]]:
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
    target = args.output or Path(cfg.OUTPUT_DIR, "export", f"{name}{extension}")
    if target.suffix != extension:
        raise UserError(f"--output {target} must end in {extension} for --format {args.format}")
    files = [target, target.with_name(f"{target.stem}_int8.onnx")] if args.int8 else [target]
    for file in files:
        if check_writable(file).exists() and not args.overwrite:
            raise UserError(f"{file} already exists; --overwrite replaces it, or name another in --output")
    return [*map(check_writable, files), None][:2]
