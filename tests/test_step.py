"""The training step: mixed precision, and numbers that are not finite."""

import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from resnest_d2 import UserError, model_zoo
from resnest_d2.command_line import one_line_errors
from resnest_d2.engine.failures import named_failures
from resnest_d2.engine.step import TrainStep


class Line(nn.Module):
    """A model whose loss is linear in its only weight, with the gradient that is set."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.slope = 1.0

    def forward(self, data):
        return {"loss": (self.weight * self.slope).sum()}


def train_step(folder, scaled=False, max_skipped=0):
    """Args: scaled: with a gradient scaler, which on its own only CUDA has."""
    model = Line()
    step = TrainStep(
        model,
        [[{"file_name": "image.jpg"}]] * 100,
        torch.optim.SGD(model.parameters(), 0.1),
        amp=scaled,
        seed=1,
        max_skipped=max_skipped,
        output_dir=str(folder),
    )
    if scaled:
        step.grad_scaler = torch.amp.GradScaler("cpu")
    return step


def run(step, *slopes):
    with EventStorage():
        for step.iter, step.model.slope in enumerate(slopes):
            step.run_step()


@pytest.mark.parametrize("scaled_before", (False, True))
@pytest.mark.parametrize("scaled_after", (False, True))
def test_a_checkpoint_with_or_without_a_scaler_resumes_either_way(tmp_path, scaled_before, scaled_after):
    before = train_step(tmp_path, scaled_before)
    run(before, 1.0)
    if scaled_before:
        before.grad_scaler.update(1024.0)
    after = train_step(tmp_path, scaled_after)
    after.load_state_dict(before.state_dict())
    if scaled_after:
        assert after.grad_scaler.get_scale() == (1024.0 if scaled_before else 65536.0)
    run(after, 1.0)
    assert after.model.weight.item() != 0


def test_a_scale_that_is_too_large_is_halved_until_it_fits_and_training_goes_on(tmp_path):
    step = train_step(tmp_path, scaled=True)
    run(step, *[6e36] * 12)  # times 64 it is past float32, so that the last has a scale of 32
    assert step.grad_scaler.get_scale() == 32
    assert step.model.weight.item() != 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("slope", (math.inf, math.nan))
def test_gradients_that_no_scale_makes_finite_stop_training(tmp_path, slope):
    """The scaler would skip every step for ever, without a word."""
    step = train_step(tmp_path, scaled=True)
    step.model.weight.register_hook(lambda gradient: gradient * slope)
    with pytest.raises(UserError, match=r"not finite at iteration 16: gradient.*image\.jpg"):
        run(step, *[1.0] * 20)
    assert step.grad_scaler.get_scale() == 1
    assert step.model.weight.item() == 0
    (file,) = tmp_path.iterdir()
    assert file.name == "not_finite_0000016_0.pth"


def test_a_gradient_that_is_skipped_at_the_smallest_scale_leaves_scaler_and_weights_as_they_were(tmp_path):
    step = train_step(tmp_path, scaled=True, max_skipped=1)
    step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    hook = step.model.weight.register_hook(lambda gradient: gradient * math.nan)
    run(step, 1.0)
    hook.remove()
    assert step.grad_scaler.get_scale() == 1 and step.model.weight.item() == 0
    run(step, 1.0)
    assert step.model.weight.item() == pytest.approx(-0.1)


def detector_step(folder, max_skipped=0, name="faster_resnest50"):
    """A small detector whose heads have norms that wait for the other processes."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.RESNETS.DEPTH = "cpu", "", 14
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.BOTTLENECK_WIDTH = 32, 8
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "FrozenBN"
    cfg.MODEL.ROI_BOX_HEAD.NORM, cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = "naiveSyncBN", 1
    cfg.MODEL.ROI_MASK_HEAD.NORM, cfg.INPUT.MASK_FORMAT = "BN", "bitmask"
    torch.manual_seed(0)
    model = create_ddp_model(build_model(cfg), broadcast_buffers=False, device_ids=None)
    instances = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8, 40, 40]])))
    instances.gt_classes = torch.tensor([1])
    image = {"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "instances": instances}
    record = {**image, "height": 64, "width": 64, "file_name": f"of process {comm.get_rank()}"}
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return TrainStep(
        *(model, [[record]] * 9, optimizer),
        **{"amp": False, "seed": 1, "max_skipped": max_skipped, "output_dir": str(folder)},
        received=lambda: 15 if comm.get_rank() else None,
    )


def in_process(rank, rendezvous, work, folder):
    torch.set_num_threads(1)
    os.dup2(os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    with one_line_errors(), named_failures(model_zoo.get_config("faster_resnest50")), EventStorage(0):
        work(rank, folder)
    dist.destroy_process_group()


def in_two_processes(work, folder):
    """Run ``work(rank, folder)`` in two processes; fails where they wait for each other."""
    # The fork server, which has everything imported; see forks.py.
    context = mp.start_processes(
        in_process, (str(folder / "rendezvous"), work, folder), 2, join=False, start_method="forkserver"
    )
    try:
        for _ in range(9):
            if context.join(10):
                return
        pytest.fail("the processes wait for each other")
    finally:
        for process in context.processes:
            process.kill()


@pytest.mark.parametrize("name", ("faster_resnest50", "cascade_resnest50", "cascade_mask_resnest50"))
@pytest.mark.parametrize("part", ("backbone", "roi_heads.box_head"))
def test_weights_that_are_nan_are_said_in_one_line_wherever_boxes_are_predicted(tmp_path, name, part):
    step = detector_step(tmp_path, name=name)
    (gt_mask,) = [record["instances"] for record in next(step._data_loader_iter)]
    gt_mask.gt_masks = BitMasks(torch.ones(1, 64, 64, dtype=torch.bool))
    with torch.no_grad():
        next(step.model.get_submodule(part).parameters()).fill_(math.nan)
    with EventStorage(), pytest.raises(UserError, match=r"not finite at iteration 0: .*boxes"):
        step.iter = 0
        step.run_step()


def proposals_that_are_nan_in_one(rank, folder):
    step = detector_step(folder)
    if rank == 1:
        with torch.no_grad():
            step.model.module.proposal_generator.rpn_head.anchor_deltas.bias[0] = float("nan")
    step.iter = 0
    step.run_step()


def test_proposals_that_are_not_finite_in_one_process_end_all_with_one_line(tmp_path):
    with pytest.raises(mp.ProcessExitedException) as error:
        in_two_processes(proposals_that_are_nan_in_one, tmp_path)
    assert error.value.exit_code == 2
    said = (tmp_path / "said.txt").read_text()
    assert said.count("error: not finite at iteration 0") == 1 and "Traceback" not in said, said
    assert "of process 1" in said and [f.name for f in tmp_path.glob("not*")] == ["not_finite_0000000_1.pth"]


def one_skips_and_all_hear_a_signal(rank, folder):
    step = detector_step(folder, max_skipped=1)
    bias = step.model.module.proposal_generator.rpn_head.anchor_deltas.bias
    before = bias.detach().clone()
    if rank == 1:
        with torch.no_grad():
            bias[0] = float("inf")
    for step.iter in range(2):
        step.run_step()
        if step.iter == 0:
            assert step._skipped == 1 and torch.equal(bias[1:], before[1:])
            with torch.no_grad():
                bias.copy_(before)
    assert step._skipped == 1 and step.signal == 15 and not torch.equal(bias, before)


def test_an_iteration_is_skipped_by_all_processes_and_a_signal_heard_by_all(tmp_path):
    in_two_processes(one_skips_and_all_hear_a_signal, tmp_path)


def one_ends_before_the_other_meets_it(rank, folder):
    step = detector_step(folder)
    step.iter = 0
    if rank == 1:
        os._exit(0)  # a status for which nobody ends the other
    step.run_step()


def test_a_process_that_loses_the_other_ends_with_one_line(tmp_path):
    with pytest.raises(mp.ProcessExitedException) as error:
        in_two_processes(one_ends_before_the_other_meets_it, tmp_path)
    assert error.value.exit_code == 2
    said = (tmp_path / "said.txt").read_text()
    assert said.count("error: another process of this run has ended") == 1 and "Traceback" not in said, said
