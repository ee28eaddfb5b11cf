"""Exported files as models: of the interface that evaluations use, by the runtime of the format."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple, Union

import torch
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..errors import UserError, needs, one_line
from ..files import check_readable
from ..processes import Interrupted
from .formats import FORMATS, KEY, quiet
from .graphs import INPUT

Run = Callable[[Tensor], Sequence[Tensor]]


class ExportedModel(nn.Module):
    """An exported file as a model of detectron2, on the CPU.

    It predicts images of a batch one by one, with as many threads as torch has.

    Args:
        file: .onnx, .pt2 or .ts, written by :func:`resnest_d2.export.export`.
        openvino: run an ONNX file in OpenVINO, not in onnxruntime.

    Attributes:
        description: of the file; see :func:`resnest_d2.export.describe`.

    Raises:
        UserError: the file cannot be read, is none of export's, or its runtime is missing.
    """

    def __init__(self, file: Union[str, Path], openvino: bool = False) -> None:
        super().__init__()
        file = check_readable(file)
        if file.suffix not in FORMATS:
            raise UserError(f"{file} is no exported model; its name must end in {', '.join(FORMATS)}")
        try:
            with quiet():
                self._run, text = (_open_openvino if openvino else _OPEN[file.suffix])(file)
        except UserError:
            raise
        except Exception as e:  # runtimes raise anything
            raise UserError(f"{file} cannot be opened ({one_line(e, 200)}); export the model again") from None
        if not text:
            raise UserError(f"{file} was not written by tools/export.py, as it lacks a description")
        self.file, self.description = file, json.loads(text)

    def run(self, image: Tensor) -> Dict[str, Tensor]:
        """Call the graph.

        Args:
            image: (C, H, W), from 0 to 255, channels in the order of ``description["channels"]``.

        Returns:
            The outputs by name, as :mod:`resnest_d2.export.graphs` describes them.

        Raises:
            UserError: the runtime fails.
        """
        try:
            with torch.no_grad():
                return dict(zip(self.description["outputs"], self._run(image[None].float())))
        except Exception as e:  # runtimes raise anything
            stopped = re.search(r"Interrupted: (SIG\w+)|KeyboardInterrupt", str(e))
            if stopped:  # TorchScript makes a RuntimeError of it
                raise Interrupted(signal.Signals[stopped[1] or "SIGINT"], "") from None
            shape = " x ".join(map(str, image.shape))
            raise UserError(f"{self.file.name} fails on an image of {shape} ({one_line(e, 300)})") from None

    def forward(self, batched_inputs: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
        """Predict like the model that was exported.

        Args:
            batched_inputs: each with ``image``, (C, H, W), and the ``height`` and ``width`` of the outputs.
        """
        return [self._predict(record) for record in batched_inputs]

    def _predict(self, record: Dict[str, Any]) -> Dict[str, Any]:
        size: Tuple[int, int] = tuple(record["image"].shape[-2:])
        height, width = record.get("height", size[0]), record.get("width", size[1])
        outputs = self.run(record["image"])
        if "probabilities" in outputs:
            return {"probabilities": outputs["probabilities"][0]}
        if "boxes" not in outputs:
            return {"sem_seg": sem_seg_postprocess(outputs["scores"][0], size, height, width)}
        found = Instances(size)
        found.pred_boxes, found.scores = Boxes(outputs["boxes"]), outputs["scores"]
        found.pred_classes = outputs["classes"]
        if "masks" in outputs:
            found.pred_masks = outputs["masks"][:, None]
        return {"instances": detector_postprocess(found, height, width)}


def _open_pt2(file: Path) -> Tuple[Run, str]:
    extra = {KEY: ""}
    return torch.export.load(file, extra_files=extra).module(), extra[KEY]


def _open_torchscript(file: Path) -> Tuple[Run, str]:
    extra = {KEY: ""}
    return torch.jit.load(str(file), "cpu", _extra_files=extra), _text(extra[KEY])


def _open_onnx(file: Path) -> Tuple[Run, str]:
    with needs("onnxruntime", "running ONNX", "pip install onnxruntime"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> List[Tensor]:
        return [torch.from_numpy(value) for value in session.run(None, {INPUT: image.numpy()})]

    return run, session.get_modelmeta().custom_metadata_map.get(KEY, "")


def _open_openvino(file: Path) -> Tuple[Run, str]:
    with needs("openvino", "running ONNX in OpenVINO"):
        import openvino
    _, description = _open_onnx(file)
    # Its default on some processors is bfloat16.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.Core().compile_model(str(file), "CPU", options)

    def run(image: Tensor) -> List[Tensor]:
        return [torch.from_numpy(value.copy()) for value in model({INPUT: image.numpy()}).to_tuple()]

    return run, description


def _text(content: Union[str, bytes]) -> str:
    return content.decode() if isinstance(content, bytes) else content


_OPEN = {".onnx": _open_onnx, ".pt2": _open_pt2, ".ts": _open_torchscript}
