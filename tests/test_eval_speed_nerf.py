"""`eval speed --nerf-pytorch`: the same weights, rays and settings for both, and a checkout that is one."""

import sys

import pytest
import torch

from nfc_splat.errors import UserError
from nfc_splat.eval import speed, speed_nerf

# A stand-in with nerf-pytorch's interface: it counts its steps and renders the mean of its last layer's biases.
PEER = """
import imageio
import torch
from cv2 import resize
from tqdm import trange
import matplotlib.pyplot as plt

device = None
made, rendered = [], []


class NeRF(torch.nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        sizes = [63] + [width + 63 * (k == depth // 2) for k in range(depth - 1)]
        self.pts_linears = torch.nn.ModuleList(torch.nn.Linear(size, width) for size in sizes)
        self.views_linears = torch.nn.ModuleList([torch.nn.Linear(27 + width, width // 2)])
        self.feature_linear = torch.nn.Linear(width, width)
        self.alpha_linear = torch.nn.Linear(width, 1)
        self.rgb_linear = torch.nn.Linear(width // 2, 3)


def create_nerf(args):
    print("Found ckpts []")
    networks = [NeRF(args.netwidth, args.netdepth) for _ in range(2)]
    parameters = [p for network in networks for p in network.parameters()]
    made.append((args, networks))
    options = {"network_fn": networks[0], "network_fine": networks[1]}
    return options, options, 0, parameters, torch.optim.Adam(parameters, lr=args.lrate)


def render(H, W, K, chunk, rays, near, far, network_fn, network_fine, **options):
    rendered.append((rays, near, far, options))
    rgb, rgb0 = (network.rgb_linear.bias.sigmoid().expand(rays.shape[1], 3) for network in (network_fine, network_fn))
    return rgb, None, None, {"rgb0": rgb0}


def img2mse(x, y):
    return ((x - y) ** 2).mean()
"""


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(speed_nerf, "SIZES", {"width": 16, "depth": 3, "coarse_samples": 4, "fine_samples": 5})
    monkeypatch.setattr(speed_nerf, "RAYS", 12)
    monkeypatch.setattr(speed_nerf, "FEW_RAYS", 7)
    monkeypatch.setattr(speed_nerf, "PREPARING", 2)


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "run_nerf.py").write_text(PEER)
    yield tmp_path
    sys.modules.pop("run_nerf", None)


def test_the_table(small, checkout, capsys):
    before = set(sys.modules)
    assert speed.main(["--steps", "3", "--threads", "1", "--nerf-pytorch", str(checkout)]) == 0
    head, columns, *rows = capsys.readouterr().out.splitlines()
    assert "3 training steps of 12 rays" in head
    assert "1 threads" in head
    assert columns.split() == "weights samples with a weight nerf-pytorch ours ratio ours, bf16 ratio".split()
    assert [row.split()[0] for row in rows] == ["random", "after"]
    peer = sys.modules["run_nerf"]
    assert len(peer.made) == 2
    assert len(peer.rendered) == 2 * (3 + speed_nerf.WARM_UP)
    args, _ = peer.made[0]
    assert (args.N_samples, args.N_importance, args.netwidth, args.netdepth, args.lrate) == (4, 5, 16, 3, 5e-4)
    assert args.white_bkgd
    assert args.use_viewdirs
    # What is installed may stay imported; what stood in for it does not.
    left = [sys.modules[name] for name in speed_nerf.UNUSED if name in set(sys.modules) - before]
    assert all(module.__spec__ is not None for module in left)
    assert str(checkout) not in sys.path


def test_the_same_weights_and_rays(small, checkout):
    peer = speed_nerf.load_peer(checkout)
    weights = speed_nerf.our_model(bf16=False).state_dict()
    step = speed_nerf.peer_step(peer, weights)
    _, (coarse, fine) = peer.made[0]
    assert torch.equal(coarse.pts_linears[1].weight, weights["coarse.trunk.layers.1.weight"])
    assert torch.equal(fine.rgb_linear.bias, weights["fine.color.bias"])
    rays, colors = speed_nerf.ball(12, torch.Generator().manual_seed(0))
    expected = sum((bias.sigmoid() - colors).square().mean() for bias in (fine.rgb_linear.bias, coarse.rgb_linear.bias))
    assert step((rays, colors)) == pytest.approx(expected.item())
    given, near, far, _ = peer.rendered[0]
    assert torch.equal(given, torch.stack([rays.origins, rays.directions]))
    assert (near, far) == (2, 6)
    assert not torch.equal(fine.rgb_linear.bias, weights["fine.color.bias"])  # the step was taken


def test_the_ball_is_what_it_says():
    rays, colors = speed_nerf.ball(4000, torch.Generator().manual_seed(0))
    toward = -rays.origins / speed_nerf.DISTANCE
    torch.testing.assert_close((rays.directions * toward).sum(1), torch.ones(4000))  # depth is along the axis
    unit = torch.nn.functional.normalize(rays.directions, dim=1)
    nearest = (rays.origins - (rays.origins * unit).sum(1, keepdim=True) * unit).norm(dim=1)
    white = (colors == 1).all(1)
    assert torch.equal(white, nearest >= 1)
    assert 0.2 < white.float().mean() < 0.8
    assert colors[~white].min() >= 0.1 - 1e-6


def test_our_step_learns(small):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    step = speed_nerf.our_step(speed_nerf.our_model(bf16=False))
    losses = [step(speed_nerf.ball(64, generator)) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--nerf-pytorch", "nowhere"], "no run_nerf.py"), (["--nerf-pytorch", ".", "--device", "cuda"], "cuda")],
)
def test_requests_that_cannot_be_met(words, said):
    with pytest.raises(UserError, match=said):
        speed.main(words)
