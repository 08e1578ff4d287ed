"""Operations on packed samples: their definitions in loops, their gradients, the kernels beside the reference."""

from itertools import pairwise

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from nfc_splat.rendering import packed
from nfc_splat.rendering.kernels.threads import available_cores, set_threads
from nfc_splat.rendering.packed import accumulate, distortion_loss, exclusive_sum, keep, ray_ids, render_weights

BACKENDS = ("reference", "cpu")
COUNTS = (3, 0, 5, 1, 0, 0, 17, 2)


def offsets_of(counts):
    return torch.tensor([0, *counts]).cumsum(0)


def random_offsets(rays, longest, seed):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, longest + 1, (rays,), generator=generator)
    counts[torch.rand(rays, generator=generator) < 0.2] = 0
    return offsets_of(counts.tolist())


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ascending(offsets, dtype=torch.float64):
    """[M] midpoints in [0, 1], ascending on each ray."""
    ray = ray_ids(offsets, int(offsets[-1]))
    return (ray + uniform(len(ray), seed=7, dtype=torch.float64)).sort().values.sub(ray).to(dtype)


def of_ray(offsets):
    return [slice(int(a), int(b)) for a, b in pairwise(offsets)]


# ------------------------------------------------------------------------------------------------ definitions


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stop", [0.0, 0.2])
def test_weights_are_what_compositing_says(stop, backend):
    offsets = offsets_of(COUNTS)
    alphas = uniform(int(offsets[-1]))
    weights, left = render_weights(alphas, offsets, stop=stop, backend=backend)
    for r, rows in enumerate(of_ray(offsets)):
        transmittance = 1.0
        for i in range(rows.start, rows.stop):
            ended = transmittance < stop
            assert weights[i].item() == pytest.approx(0.0 if ended else transmittance * alphas[i].item(), abs=1e-15)
            transmittance *= 1.0 if ended else 1 - alphas[i].item()
        assert left[r].item() == pytest.approx(transmittance, abs=1e-15)
    assert (weights == 0).any() == (stop > 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_seen_and_what_is_left_add_up(backend):
    offsets = random_offsets(300, 40, seed=1)
    weights, left = render_weights(0.2 * uniform(int(offsets[-1])), offsets, stop=1e-2, backend=backend)
    seen = accumulate(weights, torch.ones(len(weights), 1, dtype=torch.float64), offsets, backend=backend)
    torch.testing.assert_close(seen[:, 0] + left, torch.ones(300, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_along_rays(backend):
    offsets = offsets_of(COUNTS)
    weights, values = uniform(int(offsets[-1])), uniform(int(offsets[-1]), 4, seed=1)
    sums = accumulate(weights, values, offsets, backend=backend)
    before = exclusive_sum(weights, offsets, backend=backend)
    for r, rows in enumerate(of_ray(offsets)):
        torch.testing.assert_close(sums[r], (weights[rows, None] * values[rows]).sum(0))
        torch.testing.assert_close(before[rows], weights[rows].cumsum(0) - weights[rows])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("one_width", [True, False])
def test_distortion_is_the_double_sum(one_width, backend):
    offsets = offsets_of(COUNTS)
    count = int(offsets[-1])
    weights, midpoints = uniform(count), ascending(offsets)
    widths = 0.07 if one_width else uniform(count, seed=2)
    losses = distortion_loss(weights, midpoints, widths, offsets, backend=backend)
    widths = torch.full_like(weights, widths) if one_width else widths
    for r, rows in enumerate(of_ray(offsets)):
        w, s = weights[rows], midpoints[rows]
        between = (w[:, None] * w * (s[:, None] - s).abs()).sum()
        torch.testing.assert_close(losses[r], between + (w * w * widths[rows]).sum() / 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_in_float64(backend):
    offsets = offsets_of((3, 0, 6, 1))
    count = int(offsets[-1])
    alphas = uniform(count, seed=3).requires_grad_()
    opaque = alphas.detach().clone()
    opaque[[1, 6, 9]] = 1.0
    opaque[4] = 0.0
    opaque.requires_grad_()
    values, midpoints = uniform(count, 3, seed=4).requires_grad_(), ascending(offsets)
    functions = (
        # Below 0, because finite differences make what is left of a ray negative.
        (lambda a: render_weights(a, offsets, stop=-1.0, backend=backend), (opaque,)),
        (lambda a: render_weights(a, offsets, stop=0.1, backend=backend), (alphas,)),
        (lambda a, v: accumulate(a, v, offsets, backend=backend), (opaque, values)),
        (lambda a: exclusive_sum(a, offsets, backend=backend), (alphas,)),
        (lambda a: distortion_loss(a, midpoints, 0.1, offsets, backend=backend), (alphas,)),
    )
    for function, inputs in functions:
        assert gradcheck(function, inputs)
        if backend == "reference":
            assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_reaches_samples_behind_the_end(backend):
    offsets = offsets_of((6,))
    alphas = torch.tensor([0.5, 0.0, 0.9, 0.3, 1.0, 0.2], dtype=torch.float64, requires_grad=True)
    weights, left = render_weights(alphas, offsets, stop=0.1, backend=backend)
    assert weights[3:].tolist() == [0, 0, 0]
    assert left.item() == pytest.approx(0.05)
    (gradient,) = torch.autograd.grad((weights * uniform(6)).sum() + 2 * left.sum(), alphas)
    assert gradient[3:].tolist() == [0, 0, 0]
    assert (gradient[:3] != 0).all()


# ------------------------------------------------------------------------------------------------ kernels


def compare(function, *leaves):
    """Values and gradients of the float32 kernel beside those of the float64 reference."""
    results = []
    for backend, dtype in (("reference", torch.float64), ("cpu", torch.float32)):
        inputs = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        outputs = function(backend, *inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((out * uniform(*out.shape, seed=11).to(dtype)).sum() for out in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, inputs)])
    for exact, fused in zip(*results, strict=True):
        assert fused.dtype == torch.float32
        torch.testing.assert_close(fused.double(), exact, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("rays", "longest"), [(1, 1), (7, 300), (400, 60), (50, 0), (0, 0)])
def test_kernels_against_the_reference(rays, longest):
    offsets = random_offsets(rays, longest, seed=rays)
    count = int(offsets[-1])
    alphas = uniform(count, seed=5, dtype=torch.float32) ** 3
    alphas[::37] = 1.0
    alphas[5::41] = 0.0
    midpoints, widths = ascending(offsets, torch.float32), uniform(count, seed=9, dtype=torch.float32)
    compare(lambda backend, a: render_weights(a, offsets, backend=backend), alphas)
    compare(lambda backend, a: render_weights(a, offsets, stop=1e-3, backend=backend), alphas)
    compare(lambda backend, a: exclusive_sum(a, offsets, backend=backend), alphas)
    compare(
        lambda backend, a: distortion_loss(a, midpoints.to(a), widths.to(a), offsets, backend=backend),
        alphas / (1 + longest),
    )
    for channels in (1, 3, 4, 27):
        values = uniform(count, channels, seed=6, dtype=torch.float32)
        compare(lambda backend, a, v: accumulate(a, v, offsets, backend=backend), alphas, values)


@pytest.mark.skipif(available_cores() < 2, reason="needs two cores to compare one thread with two")
def test_one_thread_and_two_give_the_same_bits():
    offsets = random_offsets(500, 60, seed=2)
    count = int(offsets[-1])
    midpoints = ascending(offsets, torch.float32)
    results = []
    try:
        for threads in (1, 2):
            set_threads(threads)
            alphas = uniform(count, dtype=torch.float32).requires_grad_()
            values = uniform(count, 5, seed=1, dtype=torch.float32).requires_grad_()
            weights, left = render_weights(alphas, offsets, stop=1e-3)
            sums = accumulate(weights, values, offsets)
            spread = distortion_loss(weights, midpoints, 0.1, offsets)
            before = exclusive_sum(weights, offsets)
            loss = sums.square().sum() + left.sum() + spread.sum() + before.square().sum()
            results.append([sums, left, spread, before, *torch.autograd.grad(loss, (alphas, values))])
    finally:
        set_threads()
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
def test_samples_without_weight_may_hold_anything(spoilt, backend):
    offsets = offsets_of((3, 2))
    weights = torch.tensor([0.5, 0.0, 0.25, 0.0, 1.0], requires_grad=True)
    values = uniform(5, 3, dtype=torch.float32)
    values[1, 0] = spoilt
    values[3] = spoilt
    clean = values.nan_to_num(0, posinf=0).requires_grad_()
    values.requires_grad_()
    sums, expected = (accumulate(weights, v, offsets, backend=backend) for v in (values, clean))
    assert torch.equal(sums, expected)
    gradients, expected = (
        torch.autograd.grad(total.square().sum(), (weights, v)) for total, v in ((sums, values), (expected, clean))
    )
    for gradient, other in zip(gradients, expected, strict=True):
        assert torch.equal(gradient, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_with_weight_show_that_they_are_not_finite(backend):
    sums = accumulate(torch.tensor([0.5, 0.5]), torch.tensor([[1.0], [torch.nan]]), offsets_of((1, 1)), backend=backend)
    assert sums.isnan().tolist() == [[False], [True]]


# ------------------------------------------------------------------------------------------------ the rest


def test_which_ray_and_which_stay():
    offsets = offsets_of(COUNTS)
    ray = ray_ids(offsets, int(offsets[-1]))
    assert ray.tolist() == [r for r, count in enumerate(COUNTS) for _ in range(count)]
    mask = uniform(len(ray)) > 0.4
    kept = keep(mask, offsets)
    assert torch.equal(ray_ids(kept, int(mask.sum())), ray[mask])
    assert len(kept) == len(offsets)


def test_values_need_not_be_contiguous():
    offsets = offsets_of((3, 2))
    weights, values = uniform(5, 2, dtype=torch.float32)[:, 0], uniform(4, 5, dtype=torch.float32).T
    expected = accumulate(weights.contiguous(), values.contiguous(), offsets)
    assert torch.equal(accumulate(weights, values, offsets), expected)
    expanded = torch.ones(()).expand(5).requires_grad_()
    torch.autograd.grad(accumulate(expanded, values, offsets).sum(), expanded)


def test_arguments_that_do_not_fit():
    offsets, weights, values = offsets_of((3, 2)), torch.ones(5), torch.ones(5, 3)
    for call, said in (
        (lambda: render_weights(torch.ones(5, 1), offsets), r"alphas must be \[5\]"),
        (lambda: render_weights(torch.ones(5, dtype=torch.int64), offsets), "float32 or float64"),
        (lambda: render_weights(torch.ones(4), offsets), "ascend from 0 to the number of samples, 4"),
        (lambda: render_weights(weights, torch.tensor([0, 7, 5])), "ascend"),
        (lambda: render_weights(weights, offsets.int()), "int64"),
        (lambda: accumulate(weights, values[:4], offsets), r"values must be \[5, D\]"),
        (lambda: accumulate(weights, values.double(), offsets), "like the others"),
        (lambda: exclusive_sum(weights, offsets, backend="gpu"), "backend must be one of auto, reference, cpu"),
        (lambda: distortion_loss(weights, weights, values, offsets), r"widths must be \[5\]"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_main_memory_is_worked_on_by_numba_unless_asked_otherwise(monkeypatch):
    asked = []
    loaded = packed.importlib.import_module
    monkeypatch.setattr(packed.importlib, "import_module", lambda name: asked.append(name) or loaded(name))
    for backend in ("auto", "reference"):
        exclusive_sum(torch.ones(2), offsets_of((2,)), backend=backend)
    assert [name.rpartition("_")[2] for name in asked] == ["cpu", "reference"]
