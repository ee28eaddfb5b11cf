"""Runs one implementation in a process of its own: ours and the released one register the same names.

    python worker.py IMPLEMENTATION

A run by path, so that the released one never meets ours. Each line on stdin is a JSON object: ``task``,
``size``, ``batch``, ``device``, ``precision``, and for the first run of a task ``config`` (settings by key)
and ``weights`` (a file, or null). Each is answered by a line with the seconds of one repetition and the
peak of memory in MB.
"""

import json
import os
import resource
import sys
import time

import torch

OPTIONS = {"channels_last": False, "fold": False, "half": False, "compile": False, "checkpoint": False}


def configured(package, settings):
    """detectron2's defaults, the implementation's keys, and those settings that it knows."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    package.add_resnest_config(cfg)
    for key, value in settings.items():
        *sections, last = key.split(".")
        node = cfg
        for section in sections:
            node = node[section]
        if last in node:
            node[last] = value
    return cfg


def build(implementation, request):
    """The model of a task, with the weights that all implementations share where their names allow it."""
    settings, task = dict(request["config"]), request["task"]
    name, *options = implementation.split("+")
    options = {**OPTIONS, **{option: True for option in options}}
    if name == "timm":
        import timm

        model = timm.create_model("resnest50d", features_only=True, out_indices=(1, 2, 3, 4))
    else:
        from detectron2.modeling import build_backbone, build_model

        if name == "released":
            import resnest.d2 as package
        else:
            import resnest_d2 as package
        if name == "resnet":
            settings["MODEL.BACKBONE.NAME"] = "build_resnet_backbone"
            settings["MODEL.RESNETS.DEPTH"] = 50
        if options["checkpoint"]:
            settings["MODEL.RESNETS.CHECKPOINT_STAGES"] = ["res2", "res3", "res4", "res5"]
        cfg = configured(package, settings)
        cfg.MODEL.DEVICE = request["device"]
        model = build_backbone(cfg) if task.startswith("backbone") else build_model(cfg)
        if request["weights"] and name != "resnet":
            if os.path.exists(request["weights"]):
                model.load_state_dict(torch.load(request["weights"], weights_only=True))
            else:
                torch.save(model.state_dict(), request["weights"])
    model.to(request["device"])
    model.train("inference" not in task)
    if options["fold"]:
        dtype = torch.bfloat16 if request["device"] == "cpu" else torch.float16
        package.optimize_for_inference(
            model, dtype=dtype if options["half"] else None, compile=options["compile"]
        )
    elif options["channels_last"]:
        model.to(memory_format=torch.channels_last)
    return model


def inputs(request):
    """Random images, and for detectors boxes and masks of 20 objects."""
    generator = torch.Generator().manual_seed(0)
    height, width = request["size"]
    images = torch.rand(request["batch"], 3, height, width, generator=generator) * 255
    if request["task"].startswith("backbone"):
        return images.to(request["device"])
    from detectron2.structures import BitMasks, Boxes, Instances

    records = []
    for image in images:
        corner = torch.rand(20, 2, generator=generator) * torch.tensor([width, height]) * 0.7
        extent = 20 + torch.rand(20, 2, generator=generator) * torch.tensor([width, height]) * 0.25
        boxes = torch.cat((corner, corner + extent), 1)
        masks = torch.zeros(20, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist()):
            mask[y0:y1, x0:x1] = True
        instances = Instances((height, width))
        instances.gt_boxes, instances.gt_masks = Boxes(boxes), BitMasks(masks)
        instances.gt_classes = torch.randint(0, 80, (20,), generator=generator)
        records.append({"image": image, "height": height, "width": width, "instances": instances})
    return records


def repeat(model, data, request):
    """One repetition. Returns its seconds."""
    from detectron2.utils.events import EventStorage

    device = request["device"]
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(request["precision"])
    torch.manual_seed(1)
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.autocast(device, dtype, enabled=dtype is not None), EventStorage():
        if "inference" in request["task"]:
            with torch.no_grad():
                model(data)
        else:
            outputs = model(data)
            values = list(outputs.values()) if isinstance(outputs, dict) else outputs
            loss = sum(value.float().mean() for value in values)
    if "inference" not in request["task"]:
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(implementation):
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr
    model = data = None
    for line in sys.stdin:
        request = json.loads(line)
        if model is None:
            model, data = build(implementation, request), inputs(request)
            repeat(model, data, request)  # warm up
        seconds = repeat(model, data, request)
        if request["device"] == "cuda":
            memory = torch.cuda.max_memory_allocated() / 2**20
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "memory": memory}), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
