"""Share a trained model: make a folder for the Hugging Face hub from a run's OUTPUT_DIR, and upload it."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import torch
import yaml
from detectron2.config import CfgNode

from .checkpoint import as_safetensors, check_model_name
from .checkpoint.hub import FILE as WEIGHTS
from .checkpoint.read import WeightsError, read_checkpoint
from .config import default_config
from .engine.config import read_config
from .engine.results import FILE as RESULTS
from .engine.resuming import trained_classes
from .errors import UserError, needs, one_line
from .evaluation.labels import cell, label
from .evaluation.results import is_number, read_results
from .files import atomic_write_text, atomic_writer, check_writable

#: What a folder for the hub holds.
FILES = (WEIGHTS, "config.yaml", "classes.json", "README.md")
_CHECKPOINT = "model_final.pth"
#: By a task of the results: its name in words, and the hub's name.
_TASKS = {
    "bbox": ("object detection", "object-detection"),
    "segm": ("instance segmentation", "image-segmentation"),
    "keypoints": ("keypoint detection", "keypoint-detection"),
    "panoptic_seg": ("panoptic segmentation", "image-segmentation"),
    "sem_seg": ("semantic segmentation", "image-segmentation"),
    "classification": ("image classification", "image-classification"),
}
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
#: The folders of an absolute path that begins a word, or follows a bracket, quote, comma or equals sign.
_FOLDERS = re.compile(r"(?<![\w.:/~-])~?/(?:[^/\s'\",()\[\]]+/)*")


class Run(NamedTuple):
    """A finished training.

    Attributes:
        cfg: its configuration.
        results: its ``results.json``.
        weights: parameters and buffers by name.
        classes: names of the classes, in the order of the model's outputs; empty if they have none.
    """

    cfg: CfgNode
    results: Dict[str, Any]
    weights: Dict[str, torch.Tensor]
    classes: List[str]


def read_run(folder: Path) -> Run:
    """Read what is shared of a run.

    Raises:
        UserError: the folder is not the OUTPUT_DIR of a finished training with an evaluation, or a file in it
            cannot be used.
    """
    for name in ("config.yaml", RESULTS, _CHECKPOINT):
        if not os.path.lexists(folder / name):
            raise UserError(
                f"{folder} is not the OUTPUT_DIR of a finished training: it has no {name}; name another, or "
                "finish it with --resume"
            )
    cfg, _ = read_config(str(folder / "config.yaml"))
    results = read_results(folder / RESULTS)
    if "error" in results or not [*_figures(results)]:
        reason = "records a failure" if "error" in results else "has no figures"
        raise UserError(f"{folder / RESULTS} {reason}; evaluate with --resume first")
    content = read_checkpoint(folder / _CHECKPOINT)
    weights = content.get("model")
    if not isinstance(weights, dict) or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise WeightsError(folder / _CHECKPOINT, "holds no model", "name the OUTPUT_DIR of a training")
    iteration, iterations = content.get("iteration"), results.get("iterations")
    if isinstance(iteration, int) and isinstance(iterations, int) and iteration + 1 != iterations:
        raise UserError(
            f"{folder / RESULTS} was written after {iterations} iterations, {_CHECKPOINT} after "
            f"{iteration + 1}; evaluate the final model with --resume first"
        )
    return Run(cfg, results, weights, trained_classes(content))


def share(
    folder: Path, output: Path, licence: str, name: Optional[str] = None, overwrite: bool = False
) -> List[Path]:
    """Write :data:`FILES` from a run. No folder of this machine gets into them.

    Args:
        folder: the run's OUTPUT_DIR.
        output: folder to write.
        licence: of the weights, as the hub abbreviates it, e.g. ``apache-2.0``.
        name: of the model on the hub, USER/NAME, where it is known.
        overwrite: replace files of an earlier call.

    Returns:
        The files.

    Raises:
        UserError: as in :func:`read_run`; the licence or the name is malformed; or the folder holds other
            files, or without ``overwrite`` any.
    """
    if not _LICENCE.fullmatch(licence.lower()):
        raise UserError(
            f"--licence {licence!r:.100} must be an abbreviation that the hub knows, such as apache-2.0 or "
            "cc-by-nc-4.0, or other"
        )
    if name is not None:
        check_model_name("--push", name)
    _check_folder(output, overwrite)
    run = read_run(folder)
    cfg, defaults = run.cfg.clone(), default_config()
    cfg.MODEL.WEIGHTS = f"hf://{name}" if name else WEIGHTS
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = defaults.OUTPUT_DIR, defaults.MODEL.DEVICE
    cfg.TRACKER = defaults.TRACKER
    with atomic_writer(output / WEIGHTS) as file:
        file.write(as_safetensors(run.weights, {"format": "pt"}))
    for key in ("PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST"):
        cfg.DATASETS[key] = tuple(Path(file).name for file in cfg.DATASETS[key])
    atomic_write_text(output / "config.yaml", cfg.dump())
    atomic_write_text(output / "classes.json", json.dumps(run.classes, indent=1, ensure_ascii=False) + "\n")
    atomic_write_text(output / "README.md", card(run, licence.lower(), name))
    return [output / file for file in FILES]


def _check_folder(output: Path, overwrite: bool) -> None:
    check_writable(output / FILES[0], "name another folder in --output")
    there = sorted(os.listdir(output)) if os.path.isdir(output) else []
    foreign = [file for file in there if file not in FILES]
    if foreign:
        raise UserError(
            f"--output {output} holds {foreign[0]!r}, which is not part of a shared model; name a new folder"
        )
    if there and not overwrite:
        raise UserError(
            f"--output {output} holds {there[0]!r}; name a new folder, or replace it with --overwrite"
        )


def push(output: Path, name: str) -> str:
    """Upload a folder of :func:`share` to the hub, or to the mirror that HF_ENDPOINT names.

    A public model is made if there is none of that name. The token is the one that ``hf auth login`` stored.

    Args:
        output: the folder.
        name: of the model, USER/NAME.

    Returns:
        The address of the commit.

    Raises:
        UserError: the name is malformed, huggingface_hub is missing, or the hub refuses the upload.
    """
    check_model_name("--push", name)
    with needs("huggingface_hub", "--push"):
        from huggingface_hub import HfApi
    api = HfApi(endpoint=os.getenv("HF_ENDPOINT") or None, library_name="resnest_d2")
    try:
        api.create_repo(name, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=output,
            allow_patterns=list(FILES),
            commit_message="Model trained with resnest_d2",
        )
    except Exception as e:  # of the network, of the hub, and of the token: of many packages
        raise UserError(
            f"--push {name}: the hub did not take it ({type(e).__name__}: {one_line(e, 300)}); log in with "
            f"`hf auth login`, or upload {output} yourself"
        ) from None
    return str(commit.commit_url)


def card(run: Run, licence: str, name: Optional[str] = None) -> str:
    """Return the model card: what the model does, its figures and how they came about, and how to use it."""
    results, cfg, model = run.results, run.cfg, run.cfg.MODEL
    figures = [*_figures(results)]
    tasks = [task for task in _TASKS if any(t == task for _, t, _, _ in figures)]
    head = {
        "license": licence,
        "library_name": "detectron2",
        **({"pipeline_tag": _TASKS[tasks[-1]][1]} if tasks else {}),
        "tags": ["detectron2", "resnest", "resnest_d2"],
    }
    weights = f"hf://{name}" if name else WEIGHTS
    versions = ", ".join(f"{key} {version}" for key, version in results["versions"].items() if version)
    seconds = results["wall_seconds"]
    sets = [label(dataset["name"]) + _file_of(dataset) for dataset in results["datasets"]]
    facts = {
        "task": ", ".join(_TASKS[task][0] for task in tasks) or "–",
        "network": f"{model.META_ARCHITECTURE}, {model.BACKBONE.NAME}, depth {model.RESNETS.DEPTH}",
        "classes": f"{len(run.classes)}, in classes.json" if run.classes else "–",
        "trained on": ", ".join(map(label, cfg.DATASETS.TRAIN)) or "–",
        "evaluated on": ", ".join(sets) or "–",
        "started from": label(file_name(model.WEIGHTS or "random weights"), 200),
        "iterations": results.get("iterations", "–"),
        "seed": results.get("seed", "–"),
        "date": results["date"] or "–",
        "hardware": f"{results.get('processes', 1)} x {results['gpu']}" if results["gpu"] else "CPU",
        "duration": f"{seconds:.0f} s" if seconds is not None else "–",
        "versions": versions or "–",
        "commit": results["commit"] or "–",
    }
    command = without_folders(results["command"]) if results["command"] else "–"
    return "\n".join(
        [
            "---",
            yaml.safe_dump(head, sort_keys=False).rstrip(),
            "---",
            f"# {name or 'A model of resnest_d2'}",
            "",
            "Trained and evaluated with resnest_d2, a detectron2 plugin with ResNeSt backbones.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {cell(value)} |" for key, value in facts.items()),
            "",
            "## Figures",
            "",
            "| data | task | metric | value |",
            "|---|---|---|---|",
            *(f"| {cell(d)} | {t} | {m} | {cell(v)} |" for d, t, m, v in figures),
            "",
            "They come from the run's own evaluation:",
            "",
            "```",
            one_line(command).replace("`", "'"),
            "```",
            "",
            "## Use",
            "",
            "```",
            "python tools/predict.py IMAGES --output drawn --classes classes.json \\",
            f"    --config-file config.yaml MODEL.WEIGHTS {weights}",
            "```",
            "",
            f"Licence of the weights: {licence}.",
            "",
        ]
    )


def without_folders(command: str) -> str:
    """Reduce the paths in a command line that are absolute or lead up to the names of their files."""
    return shlex.join(map(file_name, shlex.split(command)))


def file_name(word: str) -> str:
    """Return a word of a command line without the folders of absolute paths, and of those with ``..``."""
    option, equals, value = word.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={file_name(value)}"
    if re.search(r"['\"]", word):  # a list of names
        return re.sub(r"(['\"])(.*?)\1", lambda quoted: quoted[1] + file_name(quoted[2]) + quoted[1], word)
    if "://" in word and not word.startswith("file://"):
        return word
    path = word.removeprefix("file://")
    if path.startswith(("/", "~")) or ".." in path.split("/"):
        return path.rstrip("/").rpartition("/")[2]
    return _FOLDERS.sub("", path)


def _figures(results: Mapping[str, Any]) -> Iterator[Tuple[str, str, str, str]]:
    """Yield data, task, metric and value of the metrics over all classes."""
    found, names = results["results"], [dataset["name"] for dataset in results["datasets"]]
    by_data = found if len(names) > 1 and set(found) <= set(names) else {(names or ["–"])[0]: found}
    for data, tasks in by_data.items():
        for task, metrics in tasks.items() if isinstance(tasks, dict) else ():
            if task.removesuffix("_TTA") not in _TASKS or not isinstance(metrics, dict):
                continue
            for metric, value in metrics.items():
                if "-" not in metric and (value is None or is_number(value)):
                    yield data, task, metric, "–" if value is None else f"{value:.2f}"


def _file_of(dataset: Mapping[str, Any]) -> str:
    return f" ({label(Path(dataset['json_file']).name)})" if dataset["json_file"] else ""
