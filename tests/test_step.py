"""The training step: mixed precision, and numbers that are not finite."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from resnest_d2 import UserError
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
