"""ONNX files with convolutions in 8-bit integers."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Dict, Iterable, Optional

import numpy as np
from torch import Tensor

from ..errors import UserError, needs
from ..files import atomic_writer
from .formats import quiet
from .graphs import INPUT


def quantize(source: Path, target: Path, images: Iterable[Tensor]) -> None:
    """Write an ONNX file whose convolutions compute in 8-bit integers.

    Ranges of activations come from images (static quantisation); weights have a scale for each channel.
    Everything else stays in float32.

    Args:
        source: ONNX file.
        images: (C, H, W), as the model sees them.

    Raises:
        UserError: there are no images, a package is missing, or the file cannot be written.
    """
    with needs("onnxruntime", "quantising"):
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    waiting = iter(images)
    first = next(waiting, None)
    if first is None:
        raise UserError("there are no images to calibrate with; name some in --calibrate")
    waiting = chain([first], waiting)

    class Reader(CalibrationDataReader):
        def get_next(self) -> Optional[Dict[str, np.ndarray]]:
            image = next(waiting, None)
            return None if image is None else {INPUT: image[None].float().numpy()}

    with atomic_writer(target, ending=".onnx") as file, quiet():
        quantize_static(
            str(source),
            file.name,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
