"""Runs one of the two implementations in a process of its own, since both register the same names.

    python worker.py resnest.d2|resnest_d2

The same code drives both. Each line on stdin is a JSON list of two files of torch.save, SPEC to be read and OUT to
be written, and is answered by a line with a JSON string, the traceback of what went wrong. With ``weights`` in SPEC,
an earlier OUT, its ``state`` is loaded, and must fit exactly; without, the model is initialised at random, norms
included, and its state is in OUT. ``ours`` are KEY VALUE pairs that only this package has. The task ``state`` only
builds the model.
"""

import importlib
import json
import os
import sys
import traceback

import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.utils.events import EventStorage
from torch import nn


def stand_in_for_compiled_convolution(package):
    """Gives the released code torchvision's kernel in place of detectron2's compiled one."""

    class Deform(nn.Module):
        def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1,
                     groups=1, deformable_groups=1, bias=False, norm=None):  # fmt: skip
            super().__init__()
            self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, 3, 3))
            nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
            self.how = (stride, padding, dilation)
            self.norm, self.bias = norm, None

        def forward(self, x, offset, mask=None):
            x = torchvision.ops.deform_conv2d(x, offset, self.weight, None, *self.how, mask)
            return x if self.norm is None else self.norm(x)

    module = importlib.import_module(f"{package}.resnest")
    module.DeformConv = module.ModulatedDeformConv = Deform


def randomise(model):
    """Norms away from the identity, offsets away from zero.

    The last norm of a residual branch is small, as it is in trained networks: else activations grow by
    a factor per block, and rounding with them, until 200 layers turn it into chaos.
    """
    for name, module in model.named_modules():
        if hasattr(module, "running_var"):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            last = name.endswith(("conv3.norm", "bn3"))
            module.weight.data.uniform_(*((0.1, 0.3) if last else (0.5, 1.5)))
            module.bias.data.normal_(0, 0.1)
        if name.endswith("conv2_offset"):
            module.weight.data.normal_(0, 0.01)
            module.bias.data.normal_(0, 0.5)


def take_float64():
    """detectron2 casts the boxes of its NMS to float32, but not their scores, which torchvision refuses."""
    proposal_utils.batched_nms = lambda boxes, scores, *args: torchvision.ops.batched_nms(
        boxes.to(scores.dtype), scores, *args
    )


def features(model, spec):
    model.eval()
    with torch.no_grad():
        return [model(image) for image in spec["images"]]


def train_step(model, spec):
    torch.manual_seed(1)  # proposals are sampled at random
    losses = model.train()(spec["batches"][0])
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    frozen = sorted(name for name, p in model.named_parameters() if not p.requires_grad)
    return {"losses": {k: v.item() for k, v in losses.items()}, "gradients": gradients, "frozen": frozen}


def sgd(model, spec):
    model.train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=spec["lr"], momentum=0.9, weight_decay=1e-4
    )
    torch.manual_seed(1)
    curve = []
    for batch in spec["batches"]:
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        curve.append(sum(losses.values()).item())
    return curve


def work(package, plugin, spec):
    cfg = get_cfg()
    plugin.add_resnest_config(cfg)
    cfg.merge_from_list(spec["cfg"])
    if package == "resnest_d2":
        cfg.merge_from_list(spec.get("ours", []))
    fast = package == "resnest_d2" and spec.get("fast")
    if fast:
        cfg.MODEL.RESNETS.CHECKPOINT_STAGES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.RESNETS.CHECKPOINT_KEEPS = "convolutions"
    torch.manual_seed(0)
    model = build_backbone(cfg) if spec["task"] == "features" else build_model(cfg)
    if spec["weights"] is None:
        randomise(model)
    else:
        model.load_state_dict(torch.load(spec["weights"], mmap=True, weights_only=False)["state"])
    if fast:
        plugin.modeling.to_channels_last(model)
    if spec["task"] in ("train_step", "sgd"):
        # Rounding in float32 decides which proposals survive, and losses would then differ by more.
        model.double()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    state = {} if spec["weights"] else {key: value.clone() for key, value in model.state_dict().items()}
    task = {"features": features, "train_step": train_step, "sgd": sgd}.get(spec["task"])
    with EventStorage():  # detectron2's heads count their samples in it
        return {"shapes": shapes, "state": state, "result": task and task(model, spec)}


def main(package):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints
    plugin = importlib.import_module(package)
    if package == "resnest.d2":
        stand_in_for_compiled_convolution(package)
    take_float64()
    for line in sys.stdin:
        spec, out = json.loads(line)
        wrong = ""
        try:
            torch.save(work(package, plugin, torch.load(spec, weights_only=False)), out)
        except Exception:
            wrong = traceback.format_exc()
        print(json.dumps(wrong), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
