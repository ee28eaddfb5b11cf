"""Synchronised norms and gradients over all devices, beside one process with all images."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import List, Sequence

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnest_d2 import ResNeSt

from .registry import Place, assert_close, check

#: Of each process.
IMAGES = 2


def network(place: Place, norm: str, checkpointed: Sequence[str]) -> nn.Module:
    torch.manual_seed(0)
    options = {"norm": norm, "checkpoint_stages": checkpointed, "fused_kernels": not place.small}
    model = ResNeSt(14, out_features=["res2", "res3"], **options)
    # In float32, the CPU's synchronised norm loses the variance of pooled vectors, mean square less squared mean.
    return model.to(place.device, torch.float64 if place.small else torch.float32)


def gradients(place: Place, model: nn.Module, images: Tensor) -> List[Tensor]:
    outputs = model(images.to(next(model.parameters())))
    sum(value.square().mean() for value in outputs.values()).backward()
    return [p.grad.cpu() for name, p in model.named_parameters() if not name.endswith("fc1.bias")]


def batch(place: Place) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = 64 if place.small else 256
    contrast = torch.arange(1.0, place.count * IMAGES + 1)[
        :, None, None, None
    ]  # unequal, for the pooled norm
    return contrast * torch.randn(place.count * IMAGES, 3, size, size, generator=generator)


def _process(rank: int, place: Place, checkpointed: Sequence[str], folder: str) -> None:
    cuda = not place.small
    if cuda:
        torch.cuda.set_device(rank)
        place = place._replace(device=torch.device("cuda", rank))
    meeting = {"init_method": f"file://{folder}/meeting", "rank": rank, "world_size": place.count}
    dist.init_process_group("nccl" if cuda else "gloo", **meeting)
    model = network(place, "SyncBN" if cuda else "naiveSyncBN", checkpointed)
    model = DistributedDataParallel(model, device_ids=[rank] if cuda else None, broadcast_buffers=False)
    found = gradients(place, model, batch(place)[rank * IMAGES :][:IMAGES])
    if rank == 0:
        torch.save(found, Path(folder, "gradients.pth"))
    dist.destroy_process_group()


def equals_one_process(place: Place, checkpointed: Sequence[str]) -> str:
    expected = gradients(place, network(place, "BN", ()), batch(place))
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (place, checkpointed, folder), nprocs=place.count)
        found = torch.load(Path(folder, "gradients.pth"), weights_only=True)
    return f"{place.count} processes, {assert_close(expected, found, 1e-3)[1]}"


@check()
def synchronised_norms_and_gradients(place: Place) -> str:
    return equals_one_process(place, ())


@check()
def synchronised_with_checkpointed_stages(place: Place) -> str:
    return equals_one_process(place, ("res2", "res3"))
