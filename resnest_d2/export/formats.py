"""Writing a graph as ONNX, pt2 or TorchScript."""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import torch
from torch import Tensor

from ..errors import UserError, needs, one_line
from ..files import atomic_writer
from .graphs import INPUT, Graph

#: Key of the description in a file's metadata.
KEY = "resnest_d2"
#: Height and width of the image with which graphs are recorded: unequal, and no multiples of strides.
_EXAMPLE = (181, 245)
#: Of ONNX: the newest that the installed exporter and the runtimes of the last two years have in common.
OPSET = 20
Write = Callable[[Graph, str, Path], None]


def write_graph(graph: Graph, description: Dict[str, Any], target: Path, channels: int) -> None:
    """Write a graph in the format of the target's extension, with a description in its metadata.

    Args:
        description: as JSON has it.
        channels: of the image.

    Raises:
        UserError: a package is missing, the exporter fails, or the file cannot be written.
    """
    write = FORMATS[target.suffix]
    example = torch.rand(1, channels, *_EXAMPLE) * 255
    with atomic_writer(target, ending=target.suffix) as file, torch.no_grad(), quiet():
        try:
            write(graph, example, json.dumps(description), Path(file.name))
        except (UserError, OSError):
            raise
        except Exception as e:  # exporters raise anything
            raise UserError(
                f"{target.suffix}: torch {torch.__version__} cannot export this model ({one_line(e, 300)}); "
                f"try another format ({', '.join(FORMATS)})"
            ) from e


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what exporters say about models of detectron2 and about themselves."""
    # The root is where quantisation advises a preparation that needs fixed sizes.
    names = ("root", "torch.onnx", "torch.export", "torch._export", "torch.fx", "onnxscript")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _export(graph: Graph, example: Tensor) -> torch.export.ExportedProgram:
    free = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    return torch.export.export(graph, (example,), dynamic_shapes=(free,))


def _write_pt2(graph: Graph, example: Tensor, description: str, path: Path) -> None:
    torch.export.save(_export(graph, example), path, extra_files={KEY: description})


def _write_torchscript(graph: Graph, example: Tensor, description: str, path: Path) -> None:
    # Tracing's own check compares outputs in their order, which objects of equal scores have none of.
    traced = torch.jit.trace(graph, (example,), check_trace=False)
    traced.save(str(path), _extra_files={KEY: description})


def _write_onnx(graph: Graph, example: Tensor, description: str, path: Path) -> None:
    check_packages("onnx")
    import onnx

    program = torch.onnx.export(
        _export(graph, example),
        (example,),
        dynamo=True,
        input_names=[INPUT],
        output_names=list(graph.names),
        opset_version=OPSET,
        verbose=False,
    )
    model = program.model_proto
    model.metadata_props.add(key=KEY, value=description)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def check_packages(name: str, openvino: bool = False) -> None:
    """Raise UserError if a package is missing that a format or OpenVINO needs."""
    if name == "onnx":
        with needs("onnx, onnxscript and onnxruntime", "ONNX", "pip install onnx onnxscript onnxruntime"):
            for package in ("onnx", "onnxscript", "onnxruntime"):
                import_module(package)
    if openvino:
        with needs("openvino", "--openvino"):
            import_module("openvino")


#: Extensions of files by the names of formats.
EXTENSIONS = {"onnx": ".onnx", "pt2": ".pt2", "torchscript": ".ts"}
#: Functions by the extension of the file that they write.
FORMATS: Dict[str, Write] = {".onnx": _write_onnx, ".pt2": _write_pt2, ".ts": _write_torchscript}
