"""Which tensors a cell asks: against looking at all of them, and the lattice itself."""

import pytest
import torch
from trivector_toys import HALVES, toy_cells, toy_points

from nfc_splat.errors import UserError
from nfc_splat.rendering.tensor_cells import MOST_TENSORS, find_cells, lattice_size


def by_looking_at_all(cells, nearest):
    """[X, Y, Z] bool active and [X, Y, Z, L, K] nearest tensors."""
    x, y, z = cells.size
    places = torch.cartesian_prod(*(torch.arange(n) for n in (x, y, z)))
    middles = cells.low.double() + (places + 0.5) * cells.cell
    active, lists = torch.ones(len(places), dtype=torch.bool), []
    for centers, half in zip(cells.centers, cells.halves, strict=True):
        offset = middles[:, None] - centers.double()
        reaching = (offset.abs() < half + cells.cell / 2).all(-1)
        distance = torch.where(reaching, offset.norm(dim=-1), torch.inf)
        distance = torch.nn.functional.pad(distance, (0, nearest), value=torch.inf)
        order = distance.argsort(dim=1, stable=True)[:, :nearest]
        lists.append(torch.where(distance.gather(1, order) < torch.inf, order, -1))
        active &= reaching.any(1)
    return active.view(x, y, z), torch.stack(lists, 1).view(x, y, z, len(lists), nearest)


@pytest.mark.parametrize(("nearest", "cell"), [(1, 0.12), (4, 0.12), (3, 0.05)])
def test_every_active_cell_has_the_nearest_tensors_that_reach_it(nearest, cell):
    cells = toy_cells(nearest, cell, drop=0.5)
    active, expected = by_looking_at_all(cells, nearest)
    assert 0.1 < float(active.float().mean()) < 0.999
    assert torch.equal(cells.occupied, active)
    assert torch.equal(cells.rows[active], torch.arange(int(active.sum()), dtype=torch.int32))
    assert torch.equal(cells.neighbors.long(), expected[active])
    assert torch.equal(cells.active(), active.nonzero())
    if nearest == 4:
        assert (cells.neighbors == -1).any()
        assert (cells.neighbors[:, :, -1] >= 0).any()


def test_cells_that_are_not_kept_are_not_active():
    cells = toy_cells()
    keep = torch.rand(cells.size, generator=torch.Generator().manual_seed(0)) < 0.5
    fewer = find_cells(cells.low, cells.cell, cells.size, cells.centers, HALVES, 3, keep)
    assert torch.equal(fewer.occupied, cells.occupied & keep)
    assert torch.equal(fewer.neighbors, cells.neighbors[cells.rows[fewer.occupied].long()])


def test_points_find_the_cell_that_they_lie_in():
    cells, points = toy_cells(drop=0.5), toy_points(2000)
    rows = cells.rows_of(points)
    place = ((points.double() - cells.low) / cells.cell).floor().long()
    inside = ((place >= 0) & (place < torch.tensor(cells.size))).all(1)
    x, y, z = place.clamp_min(0).minimum(torch.tensor(cells.size) - 1).unbind(1)
    expected = torch.where(inside, cells.rows[x, y, z], torch.tensor(-1, dtype=torch.int32))
    assert (rows == expected).float().mean() > 0.999  # but for rounding on faces
    middles = cells.middles(cells.active())
    assert torch.equal(cells.rows_of(middles), torch.arange(len(middles), dtype=torch.int32))


def test_a_lattice_fills_its_box():
    box = torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.31, 1.0]])
    assert lattice_size(box, 0.1) == (10, 4, 20)
    cells = toy_cells(cell=0.25)
    assert cells.size == (4, 4, 4)
    torch.testing.assert_close(cells.box, torch.tensor([[0.0] * 3, [1.0] * 3]))


def test_what_no_memory_could_hold_is_an_error():
    with pytest.raises(UserError, match="lattice of cells would have 10000 x 10000 x 10000 entries"):
        lattice_size(torch.tensor([[0.0] * 3, [1.0] * 3]), 1e-4)
    for count in (0, MOST_TENSORS + 1):
        with pytest.raises(ValueError, match=f"1 to {MOST_TENSORS} tensors; got {count}"):
            find_cells(torch.zeros(3), 0.5, (2, 2, 2), [torch.zeros(count, 3)], [0.3], 4)
