"""`eval speed --dnerf`: the same weights, rays and settings for both, and a checkout that is one."""

import sys

import pytest
import torch

from nfc_splat.errors import UserError
from nfc_splat.eval import speed, speed_dnerf, speed_nerf

# A stand-in with D-NeRF's interface: it counts its steps and renders its last layer's biases.
PEER = """
import imageio
import torch
torch.autograd.set_detect_anomaly(True)
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm, trange
from torchsearchsorted import searchsorted

device = None
made, rendered, anomalies = [], [], []


class Field(torch.nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        sizes = [63] + [width + 63 * (k == depth // 2) for k in range(depth - 1)]
        self.pts_linears = torch.nn.ModuleList(torch.nn.Linear(size, width) for size in sizes)
        self.views_linears = torch.nn.ModuleList([torch.nn.Linear(27 + width, width // 2)])
        self.feature_linear = torch.nn.Linear(width, width)
        self.alpha_linear = torch.nn.Linear(width, 1)
        self.rgb_linear = torch.nn.Linear(width // 2, 3)


class Network(torch.nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self._occ = Field(width, depth)
        sizes = [84] + [width + 63 * (k == depth // 2) for k in range(depth - 1)]
        self._time = torch.nn.ModuleList(torch.nn.Linear(size, width) for size in sizes)
        self._time_out = torch.nn.Linear(width, 3)


def create_nerf(args):
    print("Found ckpts []")
    network = Network(args.netwidth, args.netdepth)
    made.append((args, network))
    options = {"network_fn": network, "network_fine": None, "ndc": False}
    return options, options, 0, list(network.parameters()), torch.optim.Adam(network.parameters(), lr=args.lrate)


def render(H, W, focal, chunk, rays, frame_time, near, far, network_fn, **options):
    rendered.append((rays, frame_time, near, far))
    anomalies.append(torch.is_anomaly_enabled())
    return network_fn._occ.rgb_linear.bias.sigmoid().expand(rays.shape[1], 3), None, None, {}


def img2mse(x, y):
    return ((x - y) ** 2).mean()
"""


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(speed_dnerf, "SIZES", {"width": 16, "depth": 3, "coarse_samples": 4, "fine_samples": 5})
    monkeypatch.setattr(speed_dnerf, "RAYS", 12)
    monkeypatch.setattr(speed_dnerf, "FEW_RAYS", 7)
    monkeypatch.setattr(speed_dnerf, "PREPARING", 2)


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "run_dnerf.py").write_text(PEER)
    yield tmp_path
    sys.modules.pop("run_dnerf", None)


def test_the_table(small, checkout, capsys):
    before = set(sys.modules)
    assert speed.main(["--steps", "3", "--threads", "1", "--dnerf", str(checkout)]) == 0
    head, _, columns, *rows = capsys.readouterr().out.splitlines()
    assert "3 training steps of 12 rays" in head
    expected = "weights samples with a weight D-NeRF plain ours ratio ratio ours, bf16 ratio ratio"
    assert columns.split() == expected.split()
    assert [row.split()[0] for row in rows] == ["random", "after"]
    peer = sys.modules["run_dnerf"]
    assert len(peer.made) == 4
    taken = 3 + speed_nerf.WARM_UP
    assert peer.anomalies == [True, False] * (2 * taken)
    assert not torch.is_anomaly_enabled()
    args, _ = peer.made[0]
    assert (args.N_samples, args.N_importance, args.netwidth, args.netdepth, args.lrate) == (4, 5, 16, 3, 5e-4)
    assert (args.nerf_type, args.use_two_models_for_fine, args.not_zero_canonical) == ("direct_temporal", False, False)
    assert not ({*speed_dnerf.UNUSED, "torchsearchsorted"} & set(sys.modules)) - before
    assert str(checkout) not in sys.path


def test_the_same_weights_rays_and_moment(small, checkout):
    peer = speed_dnerf.load_peer(checkout)
    weights = speed_dnerf.our_model(bf16=False).state_dict()
    step = speed_dnerf.peer_step(peer, weights, anomalies=False)
    _, network = peer.made[0]
    assert torch.equal(network._time[2].weight, weights["displacement.network.layers.2.weight"])
    assert torch.equal(network._time_out.bias, weights["displacement.network.layers.3.bias"])
    assert torch.equal(network._occ.rgb_linear.bias, weights["canonical.fine.color.bias"])
    rays, colors = speed_dnerf.draw(12, torch.Generator().manual_seed(0))
    bias = network._occ.rgb_linear.bias.detach().clone()
    assert step((rays, colors)) == pytest.approx((bias.sigmoid() - colors).square().mean().item())
    given, moment, near, far = peer.rendered[0]
    assert torch.equal(given, torch.stack([rays.origins, rays.directions]))
    assert (moment, near, far) == (0.5, 2, 6)
    assert rays.times.unique().tolist() == [0.5]
    assert not torch.equal(network._occ.rgb_linear.bias, bias)  # the step was taken


def test_its_search_is_torchs(small, checkout):
    peer = speed_dnerf.load_peer(checkout)
    edges, values = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[0.5, 0.7]])
    assert peer.searchsorted(edges, values, side="right").tolist() == [[2, 2]]
    assert peer.searchsorted(edges, values, side="left").tolist() == [[1, 2]]


def test_our_step_learns(small):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    step = speed_dnerf.our_step(speed_dnerf.our_model(bf16=False))
    losses = [step(speed_dnerf.draw(64, generator)) for _ in range(150)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_folder_that_is_no_checkout(tmp_path):
    with pytest.raises(UserError, match=r"there is no run_dnerf\.py in it"):
        speed.main(["--dnerf", str(tmp_path)])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda"):
            speed.main(["--dnerf", str(tmp_path), "--device", "cuda"])
