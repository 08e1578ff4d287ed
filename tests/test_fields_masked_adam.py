"""DVGO's Adam: the update by hand, what it leaves alone, the kernel against torch in float64, and its state."""

import math

import pytest
import torch

from nfc_splat.fields.masked_adam import MaskedAdam
from nfc_splat.rendering.kernels.threads import set_threads
from nfc_splat.training.checkpoint import join_tensors, split_tensors


def parameter(count=1000, seed=0, dtype=torch.float32):
    return torch.nn.Parameter(torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def gradients(count, steps, seed=1, zeros=0.6):
    """Gradients of which a share is exactly 0, other ones at each step, in runs so that whole blocks are."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        gradient = torch.randn(count, generator=generator)
        gradient[torch.rand(count, generator=generator) < zeros] = 0
        gradient[count // 3 : count // 2] = 0
        yield gradient


def train(value, optimizer, steps=4, seed=1):
    for gradient in gradients(len(value), steps, seed):
        value.grad = gradient.to(value)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_steps_by_hand(dtype):
    """Numbers large enough that epsilon shows."""
    value = torch.nn.Parameter(torch.tensor([1.0], dtype=dtype))
    optimizer = MaskedAdam([value], lr=0.1, eps=0.5)
    p, m, v = 1.0, 0.0, 0.0
    for t, g in ((1, 2.0), (2, -3.0)):
        value.grad = torch.tensor([g], dtype=dtype)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        p -= 0.1 * math.sqrt(1 - 0.99**t) / (1 - 0.9**t) * m / (math.sqrt(v) + 0.5)
        assert value.item() == pytest.approx(p, rel=1e-6)
    assert p == pytest.approx(0.9817885, abs=1e-6)  # 1 - 0.1 * 0.2 / 0.7 + 0.0742458 * 0.12 / 0.86


def test_epsilon_is_ten_times_as_strong_as_torchs_at_the_first_step():
    ours, theirs = parameter(1), parameter(1)
    before = ours.item()
    ours.grad, theirs.grad = torch.tensor([1e-8]), torch.tensor([1e-8])
    MaskedAdam([ours], lr=1.0, eps=1e-8).step()
    torch.optim.Adam([theirs], lr=1.0, betas=(0.9, 0.99), eps=1e-7).step()
    assert before - ours.item() == pytest.approx(1 / 11, rel=1e-3)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)


def test_numbers_without_a_gradient_rest_with_their_moments():
    value = parameter(100)
    optimizer = MaskedAdam([{"params": [value], "lr": 0.1, "skip_zero_grad": True}])
    value.grad = torch.ones(100)
    optimizer.step()
    state = optimizer.state[value]
    before = [tensor.detach().clone() for tensor in (value, state["exp_avg"], state["exp_avg_sq"])]
    value.grad = torch.zeros(100)
    value.grad[[3, 97]] = -1.0
    optimizer.step()
    changed = torch.zeros(100, dtype=torch.bool)
    changed[[3, 97]] = True
    for old, new in zip(before, (value, state["exp_avg"], state["exp_avg_sq"]), strict=True):
        assert torch.equal(old != new, changed)
    assert state["step"] == 2


def test_without_the_flag_moments_fade_and_move_everything():
    value = parameter(20)
    optimizer = MaskedAdam([value], lr=0.1)
    value.grad = torch.ones(20)
    optimizer.step()
    before = value.detach().clone()
    value.grad = torch.zeros(20)
    optimizer.step()
    assert (value != before).all()
    assert torch.allclose(optimizer.state[value]["exp_avg"], torch.full((20,), 0.09))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_kernel_equals_torch_in_float64(skip, scaled):
    """40,005 numbers: several pieces of work, and a rest that fills no block."""
    values = [parameter(40_005), parameter(40_005)]
    values[1] = torch.nn.Parameter(values[0].detach().double())
    for value in values:
        scale = torch.rand(40_005, generator=torch.Generator().manual_seed(5)).to(value) if scaled else None
        group = {"params": [value], "lr": 0.05, "skip_zero_grad": skip, "per_voxel_lr": scale}
        train(value, MaskedAdam([group]))
    assert torch.allclose(values[0].double(), values[1], rtol=0, atol=1e-5)


def test_any_number_of_threads_gives_the_same_bits():
    results = []
    try:
        for threads in (1, 2):
            set_threads(threads)
            results.append(parameter(40_005))
            train(results[-1], MaskedAdam([{"params": [results[-1]], "lr": 0.05, "skip_zero_grad": True}]))
    finally:
        set_threads()
    assert torch.equal(*results)


def test_a_learning_rate_per_voxel_overrules_resting_and_needs_the_same_shape():
    density, color = torch.nn.Parameter(torch.zeros(4, 1)), torch.nn.Parameter(torch.zeros(4, 3))
    scale = torch.tensor([[0.0], [0.5], [1.0], [1.0]])
    group = {"params": [density, color], "lr": 0.1, "skip_zero_grad": True, "per_voxel_lr": scale}
    optimizer = MaskedAdam([group], eps=0.0)
    density.grad, color.grad = torch.tensor([[1.0], [1.0], [1.0], [0.0]]), torch.ones(4, 3)
    optimizer.step()
    assert torch.allclose(density, torch.tensor([[0.0], [-0.05], [-0.1], [torch.nan]]), equal_nan=True)  # 0 / 0
    assert torch.allclose(color, torch.full((4, 3), -0.1))


def test_its_state_survives_a_checkpoint_bit_for_bit():
    def fresh(value):
        scale = torch.linspace(0, 1, len(value)).view_as(value)
        return MaskedAdam([{"params": [value], "lr": 0.05, "skip_zero_grad": True, "per_voxel_lr": scale}])

    value = parameter(300)
    optimizer = fresh(value)
    train(value, optimizer, steps=3)
    tensors = {}
    tree = split_tensors(optimizer.state_dict(), "optimizer", tensors)
    saved = {name: tensor.clone() for name, tensor in tensors.items()}
    resumed = torch.nn.Parameter(value.detach().clone())
    other = MaskedAdam([resumed])
    other.load_state_dict(join_tensors(tree, saved))
    train(value, optimizer, seed=2)
    train(resumed, other, seed=2)
    assert torch.equal(value, resumed)
    assert other.state[resumed]["step"] == 7
    assert torch.equal(other.param_groups[0]["per_voxel_lr"], optimizer.param_groups[0]["per_voxel_lr"])


@pytest.mark.parametrize("settings", [dict(lr=-1.0), dict(eps=-1e-8), dict(betas=(0.9, 1.0))])
def test_settings_that_mean_nothing(settings):
    with pytest.raises(ValueError, match="must be"):
        MaskedAdam([parameter()], **settings)
