"""Contraction, boxes and marching: against their definitions, brute force, and the reference to the bit."""

import pytest
import torch

from nfc_splat.rendering import occupancy
from nfc_splat.rendering.kernels.threads import available_cores, set_threads
from nfc_splat.rendering.occupancy import contract, march_occupancy, ray_box, uncontract

LOW, HIGH = torch.tensor([-1.0, -1.1, -0.9]), torch.tensor([1.0, 1.2, 1.0])
GRIDS = {"small": (10, 12, 9), "blocks": (64, 40, 51), "flat": (1, 5, 3)}


def rays(count=100, seed=0):
    """Rays from outside and inside the box towards its middle, the first eight of them awkward."""
    generator = torch.Generator().manual_seed(seed)
    origins = 2 * torch.randn(count, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator) - 2 * origins, dim=-1)
    origins[0], directions[0] = torch.tensor([-3.0, 0.2, 0.3]), torch.tensor([1.0, 0.0, 0.0])
    origins[1], directions[1] = torch.tensor([0.3, 2.0, 0.1]), torch.tensor([0.0, -1.0, 0.0])
    origins[2], directions[2] = torch.tensor([0.0, 0.0, -2.0]), torch.tensor([1e-9, 0.0, 1.0])
    origins[3] = torch.nan
    directions[4, 2] = torch.nan
    directions[5] = 0
    directions[6] = torch.inf
    origins[7], directions[7] = torch.tensor([-3.0, 5.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    return origins, directions


def occupied(size, share=0.3, seed=0):
    """Smooth blobs that fill about this share of the grid."""
    noise = torch.rand(1, 1, 5, 5, 5, generator=torch.Generator().manual_seed(seed))
    values = torch.nn.functional.interpolate(noise, size=size, mode="trilinear")[0, 0]
    return values >= values.flatten().quantile(1 - share)


def steps_through_box(origins, directions, step):
    """start, stride and counts of steps that cross the box."""
    enter, leave = ray_box(origins, directions, LOW, HIGH, 0.0, 100.0)
    stride = torch.full_like(enter, step)
    counts = ((leave - enter) / stride).ceil().clamp_min(0).nan_to_num(0).long()
    return enter, stride, counts


def assert_same(one, two):
    for a, b in zip(one, two, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------------ contraction


@pytest.mark.parametrize("norm", ["l2", "inf"])
def test_contraction_keeps_the_ball_and_ends_at_the_shell(norm):
    measure = (lambda x: x.norm(dim=-1)) if norm == "l2" else (lambda x: x.abs().amax(-1))
    points = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    contracted = contract(points, norm, 0.3)
    inner = measure(points) <= 1
    assert inner.any()
    assert torch.equal(contracted[inner], points[inner])
    n = measure(points[~inner])
    torch.testing.assert_close(measure(contracted[~inner]), 1.3 - 0.3 / n)
    torch.testing.assert_close(contracted[~inner] / measure(contracted[~inner])[:, None], points[~inner] / n[:, None])
    assert measure(contract(points * 1e12, norm, 0.3)).max() <= 1.3
    torch.testing.assert_close(uncontract(contracted, norm, 0.3), points)
    assert uncontract(points, norm, 0.3).isfinite().all()


@pytest.mark.parametrize("norm", ["l2", "inf"])
def test_contraction_has_the_gradient_of_its_formula(norm):
    points = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2
    points[0] = 0
    points.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: contract(x, norm, 0.3), points)
    assert torch.autograd.gradgradcheck(lambda x: contract(x, norm, 0.3), points)
    inside = contract(points, norm, 0.3).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: uncontract(x, norm, 0.3), inside)


# ------------------------------------------------------------------------------------------------ boxes


def test_rays_meet_the_box_where_they_should():
    origins, directions = (x.double() for x in rays(2000))
    enter, leave = ray_box(origins, directions, LOW.double(), HIGH.double(), 0.05, 50.0)
    met = leave >= enter
    assert 500 < met.sum() < 2000
    assert not met[[3, 4, 6, 7]].any()
    assert met[[0, 1, 2]].all()
    assert (enter[met] >= 0.05).all()
    assert (leave[met] <= 50).all()
    for t, sign in ((enter, -1), (leave, 1)):
        inside = met & (t > 0.05) & (t < 50)
        for distance, expected in ((t - sign * 1e-6, True), (t + sign * 1e-6, False)):
            at = origins + distance[:, None] * directions
            within = ((at >= LOW) & (at <= HIGH)).all(-1)
            assert (within[inside] == expected).all()
    # A ray that misses is outside everywhere.
    along = torch.linspace(0.05, 50, 3000, dtype=torch.float64)
    missed = (~met & origins.isfinite().all(-1) & directions.isfinite().all(-1)).nonzero()[:50, 0]
    at = origins[missed, None] + along[:, None] * directions[missed, None]
    assert not ((at >= LOW) & (at <= HIGH)).all(-1).any()


def test_near_and_far_may_differ_per_ray():
    origins, directions = torch.tensor([[-3.0, 0, 0]] * 2), torch.tensor([[1.0, 0, 0]] * 2)
    enter, leave = ray_box(origins, directions, LOW, HIGH, torch.tensor([0.0, 2.5]), torch.tensor([3.0, 1.0]))
    assert enter.tolist() == [2.0, 2.5]
    assert leave.tolist() == [3.0, 1.0]


# ------------------------------------------------------------------------------------------------ marching

MARCHES = {
    "steps": {},
    "table": {"table": torch.arange(90.0) ** 1.2},
    "l2": {"contraction": "l2"},
    "inf, table": {"contraction": "inf", "table": torch.arange(90.0) ** 1.5},
    "l2, thinned": {"contraction": "l2", "table": torch.arange(90.0) ** 1.5, "min_spacing": 0.03, "shell": 0.35},
    "inf, thinned": {"contraction": "inf", "min_spacing": 0.07},
}


def marched(backend, *, grid, lookup, seed=0, table=None, step=0.013, share=0.3, move=0.0, **options):
    origins, directions = rays(seed=seed)
    if table is None and not options:
        start, stride, counts = steps_through_box(origins, directions, step)
    else:
        start, stride = torch.zeros(len(origins)), torch.full((len(origins),), 3 * step)
        counts = torch.randint(0, 91, (len(origins),), generator=torch.Generator().manual_seed(seed))
    entries = occupied(GRIDS[grid], share, seed) if grid else None
    low, high = LOW + move, HIGH + move
    arguments = (origins + move, directions, start, stride, counts, table, entries, low, high)
    return march_occupancy(*arguments, lookup=lookup, backend=backend, **options)


@pytest.mark.parametrize("lookup", ["node", "cell"])
@pytest.mark.parametrize("grid", [*GRIDS, None])
@pytest.mark.parametrize("name", MARCHES)
def test_the_kernel_finds_the_references_samples(name, grid, lookup):
    found = [marched(backend, grid=grid, lookup=lookup, **MARCHES[name]) for backend in ("reference", "cpu")]
    assert_same(*found)
    if grid != "flat":
        assert len(found[0][0]) > 50


@pytest.mark.parametrize("step", [0.0015, 0.005, 0.3])
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_skipping_empty_blocks_changes_nothing(share, step):
    """Steps much finer than an entry, and longer ones; far from the origin rounding is coarse too."""
    for seed, move in ((1, 0.0), (2, 300.0)):
        given = {"grid": "blocks", "lookup": "node" if seed == 1 else "cell", "share": share, "step": step}
        found = [marched(backend, seed=seed, move=move, **given) for backend in ("reference", "cpu")]
        assert_same(*found)


def test_rays_along_the_borders_of_entries():
    """Where rounding decides: rays in the planes between cells, and steps from border to border."""
    size = 32
    low, high = torch.zeros(3), torch.full((3,), float(size))
    grid = torch.zeros(size, size, size, dtype=torch.bool)
    grid[::9, ::5, :] = True
    generator = torch.Generator().manual_seed(0)
    origins = torch.randint(0, size + 1, (300, 3), generator=generator).float()
    directions = torch.zeros(300, 3)
    axes = torch.randint(0, 3, (300,), generator=generator)
    directions[torch.arange(300), axes] = 1.0
    origins[torch.arange(300), axes] = 0.0
    directions[150:] += 1e-8 * torch.randn(150, 3, generator=generator)
    for stride in (0.25, 1.0, 1 / 3):
        arguments = (origins, directions, torch.zeros(300), torch.full((300,), stride))
        arguments += (torch.full((300,), int(40 / stride)), None, grid, low, high)
        for lookup in ("node", "cell"):
            found = [march_occupancy(*arguments, lookup=lookup, backend=backend) for backend in ("reference", "cpu")]
            assert_same(*found)
            assert len(found[0][0]) > 100


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("lookup", ["node", "cell"])
def test_samples_are_exactly_the_occupied_candidates(lookup, backend):
    """By a search that knows only the definition."""
    origins, directions = rays(40, seed=3)
    start, stride, counts = steps_through_box(origins, directions, 0.05)
    start[8:20] -= 0.4  # some candidates lie before the box
    grid = occupied((7, 6, 5), 0.4, seed=3)
    t, ray, step, offsets = march_occupancy(
        origins, directions, start, stride, counts, None, grid, LOW, HIGH, lookup=lookup, backend=backend
    )
    size = torch.tensor(grid.shape)
    expected = []
    for r in range(40):
        for k in range(int(counts[r])):
            at = origins[r] + directions[r] * (start[r] + stride[r] * k)
            if not ((at >= LOW) & (at <= HIGH)).all():
                continue
            share = (at - LOW) / (HIGH - LOW)
            entry = (share * (size - 1) + 0.5).floor() if lookup == "node" else (share * size).floor()
            if grid[tuple(torch.minimum(entry.long(), size - 1).tolist())]:
                expected.append((r, k))
    assert list(zip(ray.tolist(), step.tolist(), strict=True)) == expected
    torch.testing.assert_close(t, start[ray] + stride[ray] * step)
    assert offsets.tolist() == [int((ray < r).sum()) for r in range(41)]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("norm", ["l2", "inf"])
def test_thinning_keeps_contracted_distances(norm, backend):
    origins, directions = 0.2 * torch.randn(30, 3, generator=torch.Generator().manual_seed(5)), torch.randn(30, 3)
    table = torch.cat([torch.linspace(0, 2, 80)[:-1], 2 / torch.linspace(1, 1 / 128, 80)])
    counts = torch.full((30,), len(table))
    box = torch.full((3,), -1.3), torch.full((3,), 1.3)
    found = march_occupancy(
        origins, directions, torch.zeros(30), torch.ones(30), counts, table, None, *box,
        lookup="node", contraction=norm, shell=0.3, min_spacing=0.02, backend=backend,
    )  # fmt: skip
    expected = []
    for r in range(30):
        at = origins[r] + directions[r] * table[:, None]
        measure = at.norm(dim=-1) if norm == "l2" else at.abs().amax(-1)
        path, before = 0.0, None
        for k, place in enumerate(contract(at, norm, 0.3)):
            path += 0.0 if before is None else float((place - before).norm())
            before = place
            if measure[k] <= 1 or path > 0.02:
                expected.append((r, k))
                path = 0.0
    assert list(zip(found[1].tolist(), found[2].tolist(), strict=True)) == expected
    assert len(expected) < 0.8 * 30 * len(table)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_nothing_to_march(backend):
    origins, directions = rays(9)
    none = torch.zeros(9, dtype=torch.int64)
    grid = torch.ones(4, 4, 4, dtype=torch.bool)
    for count, chosen in ((none, slice(None)), (none - 3, slice(None)), (none[:0], slice(0, 0))):
        found = march_occupancy(
            origins[chosen], directions[chosen], torch.zeros(9)[chosen], torch.ones(9)[chosen], count,
            None, grid, LOW, HIGH, lookup="node", backend=backend,
        )  # fmt: skip
        assert [len(part) for part in found] == [0, 0, 0, len(count) + 1]
        assert (found[3] == 0).all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_rays_that_are_not_finite_have_no_samples(backend):
    origins, directions = rays(9)
    many = torch.full((9,), 50)
    start = torch.zeros(9)
    start[0] = torch.nan
    _, ray, _, _ = march_occupancy(
        origins, directions, start, torch.full((9,), 0.1), many, None, None, LOW, HIGH, lookup="cell", backend=backend
    )
    assert not set(ray.tolist()) & {0, 3, 4, 6}
    assert 1 in ray.tolist()


@pytest.mark.skipif(available_cores() < 2, reason="needs two cores to compare one thread with two")
@pytest.mark.parametrize("name", ["steps", "l2, thinned"])
def test_one_thread_and_two_find_the_same(name):
    try:
        found = []
        for threads in (1, 2):
            set_threads(threads)
            found.append(marched("cpu", grid="blocks", lookup="node", **MARCHES[name]))
    finally:
        set_threads()
    assert_same(*found)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_too_many_samples_are_refused_with_their_number(backend, monkeypatch):
    monkeypatch.setattr(occupancy, "MAX_SAMPLES", 100)
    with pytest.raises(ValueError, match=r"\d+ samples are more than 100: take longer steps"):
        marched(backend, grid="small", lookup="node")
    monkeypatch.setattr(occupancy, "MAX_CANDIDATES", 1000)
    with pytest.raises(ValueError, match="candidates are more than 1,000"):
        marched(backend, grid="small", lookup="node")


def test_arguments_that_do_not_fit():
    origins, directions = rays(9)
    good = {
        "origins": origins, "directions": directions, "start": torch.zeros(9), "stride": torch.ones(9),
        "counts": torch.ones(9, dtype=torch.int64), "table": None, "occupancy": None, "low": LOW, "high": HIGH,
    }  # fmt: skip
    for change, said in (
        ({"stride": torch.ones(8)}, r"stride must be \[9\]"),
        ({"start": torch.zeros(9, dtype=torch.float64)}, "start must be torch.float32"),
        ({"counts": torch.ones(9)}, "counts must be .* int64"),
        ({"counts": torch.full((9,), 2**25)}, "candidates on one ray"),
        ({"table": torch.zeros(0)}, "counts ask for 1 steps of a table of 0"),
        ({"occupancy": torch.ones(2, 2, 2)}, "occupancy must be"),
        ({"low": HIGH, "high": LOW}, "low must be below high"),
        ({"lookup": "voxel"}, "lookup must be one of node, cell"),
        ({"contraction": "l1"}, "norm of a contraction must be one of l2, inf"),
        ({"contraction": "l2", "shell": 0.0}, "shell of a contraction must be positive"),
        ({"min_spacing": 0.1}, "give contraction too"),
        ({"backend": "cuda"}, "backend must be one of auto, reference, cpu"),
    ):
        with pytest.raises(ValueError, match=said):
            march_occupancy(**{"lookup": "node", **good, **change})
    double = {name: x.double() if x is not None and x.is_floating_point() else x for name, x in good.items()}
    with pytest.raises(ValueError, match="float32 in main memory"):
        march_occupancy(**double, lookup="node", backend="cpu")
    assert march_occupancy(**double, lookup="node")[0].dtype == torch.float64
