"""Run one implementation in its own process, since ours and the released one register the same names.

    python worker.py IMPLEMENTATION

Run by path, so that the released one never imports ours. Each line on stdin is a JSON object: ``task``,
``size``, ``batch``, ``device``, ``precision``, and for the first run of a task ``config`` (settings by key)
and ``weights`` (a file, or null). The answer to each is a line with the seconds of one repetition and the
peak memory in MB; with ``profile``, also the seconds of each operator, or on a GPU of each kernel.
Split-Attention alone also takes the ``channels`` of a split and the ``memory_format`` of its maps.
"""

import json
import os
import resource
import sys
import time

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

OPTIONS = ("channels_last", "fold", "half", "compile", "checkpoint", "recompute", "keep_memory")
#: Channels of a split, as in res2, and number of splits where Split-Attention is measured alone.
CHANNELS, RADIX = 64, 2


def configured(package, settings):
    """detectron2's defaults, the implementation's keys, and the settings whose keys exist."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    package.add_resnest_config(cfg)
    for key, value in settings.items():
        *sections, last = key.split(".")
        node = cfg
        for section in sections:
            node = node.get(section, {})  # of which the released one has fewer
        if last in node:
            node[last] = value
    return cfg


def import_package(name):
    if name == "released":
        import resnest.d2 as package
    else:
        import resnest_d2 as package
    return package


def build_network(name, options, request):
    """Build a backbone or a detector, with the weights that implementations with the same names share."""
    settings, task = dict(request["config"]), request["task"]
    if name == "timm":
        import timm

        return timm.create_model("resnest50d", features_only=True, out_indices=(1, 2, 3, 4))
    from detectron2.modeling import build_backbone, build_model

    package = import_package(name)
    if name == "resnet":
        settings["MODEL.BACKBONE.NAME"] = "build_resnet_backbone"
        settings["MODEL.RESNETS.DEPTH"] = 50
    if "checkpoint" in options or "recompute" in options:
        settings["MODEL.RESNETS.CHECKPOINT_STAGES"] = ["res2", "res3", "res4", "res5"]
        settings["MODEL.RESNETS.CHECKPOINT_KEEPS"] = "convolutions" if "recompute" in options else "inputs"
    cfg = configured(package, settings)
    cfg.MODEL.DEVICE = request["device"]
    model = build_backbone(cfg) if task.startswith("backbone") else build_model(cfg)
    if request["weights"] and name != "resnet":
        if os.path.exists(request["weights"]):
            model.load_state_dict(torch.load(request["weights"], weights_only=True))
        else:
            torch.save(model.state_dict(), request["weights"])
    return model


class Yardstick(nn.Module):
    """A simple operation, repeated ``times`` times, to compare an implementation with."""

    def __init__(self, times):
        super().__init__()
        self.times = times


class Copy(Yardstick):
    """Copies its input: the yardstick for memory traffic."""

    def forward(self, x):
        if not hasattr(self, "target"):
            self.target = torch.empty_like(x)
        return self.target.copy_(x)


class Matmul(Yardstick):
    """Multiplies two matrices: the yardstick for arithmetic."""

    SIZE = 2048

    def __init__(self, operations):
        super().__init__(operations / (2 * self.SIZE**3))
        self.register_buffer("factor", torch.randn(self.SIZE, self.SIZE))

    def forward(self, _):
        return self.factor @ self.factor


def count_operations(model, data, request):
    """Count the multiplications and additions of convolutions and matrix products in one repetition."""
    with FlopCounterMode(display=False) as counter:
        repeat(model, data, request)
    return counter.get_total_flops()


def minimal_traffic(task):
    """The traffic that Split-Attention needs between norm and sum, in copies of its map.

    Inference reads the map twice, for the pooling and for the sum, and writes the sum. Training also reads
    the map and the sum's gradient twice, for the gradients of the attention and of the map, and writes
    the latter. A copy reads and writes the map.
    """
    splits = 2 * RADIX + 1
    if "training" in task:
        splits += 3 * RADIX + 2
    return splits / (2 * RADIX)


def build_split_attention(name, request):
    """Build the part of the layer between the norm and the sum."""
    if name == "copy":
        return Copy(minimal_traffic(request["task"]))
    if name == "released":
        from resnest.d2.splat import SplAtConv2d as layer
    else:
        from resnest_d2 import SplitAttentionConv2d as layer
    channels = request.get("channels", CHANNELS)
    model = layer(channels, channels, 3, radix=RADIX, norm="BN")
    model.conv = model.bn0 = nn.Identity()
    return model


def build(implementation, request):
    name, *options = implementation.split("+")
    unknown = set(options) - set(OPTIONS)
    if unknown:
        raise ValueError(f"{implementation}: there is no {unknown}")
    if "keep_memory" in options:
        from resnest_d2.engine.memory import keep_freed_memory

        keep_freed_memory()
    if request["task"].startswith("Split-Attention"):
        model = build_split_attention(name, request)
    else:
        model = build_network(name, options, request)
    model.to(request["device"])
    model.train("training" in request["task"])
    if name == "matmul":
        return Matmul(count_operations(model, inputs(request), request)).to(request["device"])
    if "fold" in options:
        dtype = torch.bfloat16 if request["device"] == "cpu" else torch.float16
        import_package(name).optimize_for_inference(
            model, dtype=dtype if "half" in options else None, compile="compile" in options
        )
        return model
    if "channels_last" in options:
        import_package(name).modeling.to_channels_last(model)
    if "compile" in options:
        model.compile(dynamic=True)
    return model


def inputs(request):
    """Random images; for detectors also the boxes and masks of 20 objects."""
    generator = torch.Generator().manual_seed(0)
    height, width = request["size"]
    if request["task"].startswith("Split-Attention"):
        channels = request.get("channels", CHANNELS)
        maps = torch.randn(request["batch"], channels * RADIX, height, width, generator=generator)
        dtype = torch.float16 if request["precision"] == "fp16" else torch.float32
        last = request.get("memory_format") == "channels_last"
        maps = maps.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        return maps.to(request["device"], dtype).requires_grad_("training" in request["task"])
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


class Clock:
    """Seconds from construction to :meth:`stop`, on a GPU by the GPU's clock; read them at the end."""

    def __init__(self, device):
        self._cuda = device == "cuda"
        self._start = self._now()

    def _now(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self):
        self._end = self._now()

    @property
    def seconds(self):
        if not self._cuda:
            return self._end - self._start
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1000


def repeat(model, data, request):
    """Run one repetition. Returns the clock that measured it."""
    from detectron2.utils.events import EventStorage

    device, task = request["device"], request["task"]
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(request["precision"])
    torch.manual_seed(1)
    if task.startswith("Split-Attention"):
        data.grad = None  # otherwise gradients accumulate, in three more passes over the map
        data = data.clone()  # both implementations activate it in place
    clock = Clock(device)
    with torch.autocast(device, dtype, enabled=dtype is not None), EventStorage():
        if "inference" in task or isinstance(model, Yardstick):
            with torch.no_grad():
                model(data)
        else:
            outputs = model(data)
            if task.startswith("Split-Attention"):
                outputs.backward(outputs.detach())
            else:
                values = outputs.values() if isinstance(outputs, dict) else outputs
                sum(value.float().mean() for value in values).backward()
    clock.stop()
    for parameter in model.parameters():
        parameter.grad = None
    return clock


def mean_seconds(model, data, request):
    """Mean over several repetitions: many where one is short, and enough to keep a GPU busy."""
    repetitions = 5 if request["device"] == "cuda" else 1
    if request["task"].startswith("Split-Attention"):
        repetitions = 20
    clocks = [repeat(model, data, request) for _ in range(repetitions)]
    seconds = sum(clock.seconds for clock in clocks) / repetitions
    return seconds * model.times if isinstance(model, Yardstick) else seconds


def profiled(model, data, request):
    """Seconds of each operator in one repetition, or on a GPU of each kernel."""
    with torch.profiler.profile() as profile:
        repeat(model, data, request)
    return seconds_by_name(profile.key_averages(), request["device"])


def seconds_by_name(events, device):
    """Where the device's time went, without counting any of it twice.

    On the CPU this is the time of operators, excluding the operators they call. On a GPU it is that of
    kernels and copies: the profiler also attributes kernels to operators, but not all of them, since
    Triton's are launched outside of operators.
    """
    if device == "cuda":
        own = [(e.key, e.self_device_time_total) for e in events if _is_on_gpu(e)]
    else:
        own = [(e.key, e.self_cpu_time_total) for e in events]
    return {name: microseconds / 1e6 for name, microseconds in own if microseconds > 0}


def _is_on_gpu(event):
    # Annotations span the kernels that they describe.
    return event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)


def main(implementation):
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries goes to stderr
    model = data = None
    for line in sys.stdin:
        request = json.loads(line)
        if model is None:
            model, data = build(implementation, request), inputs(request)
            repeat(model, data, request)  # warm up
        answer = {"seconds": mean_seconds(model, data, request)}
        if request["device"] == "cuda":
            answer["memory"] = torch.cuda.max_memory_allocated() / 2**20
        else:
            answer["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if request.get("profile"):
            answer["profile"] = profiled(model, data, request)
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
