"""The viewer's parts: frames and poses, splats for the browser, pictures, addresses, shapes."""

import math
import signal
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from eval_toys import Disc, ToySplit, ring_of_cameras, write_blender_scene
from view_toys import ball_of_gaussians

from nfc_splat.data import load_scene
from nfc_splat.errors import UserError
from nfc_splat.eval.images import psnr
from nfc_splat.eval.pictures import error_picture, to_bytes
from nfc_splat.fields.gaussians import write_gaussians
from nfc_splat.rendering import Rendering
from nfc_splat.rendering.march import MarchedModel
from nfc_splat.view import address, items
from nfc_splat.view.__main__ import main
from nfc_splat.view.drawn import Pace, Photograph, Wish, drawing, in_window, normals_from_depth, sizes
from nfc_splat.view.page import Viewer
from nfc_splat.view.space import SIZE, Frame, first_view
from nfc_splat.view.splats import covariance_matrices, splat_arrays

BLACK = torch.zeros(3)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return load_scene(write_blender_scene(tmp_path_factory.mktemp("view") / "ball"), undistort=True)


# Frames and poses


def test_cameras_fill_the_viewers_frame_in_any_unit():
    for scale, offset in ((1.0, 0.0), (1000.0, 5e5), (1e-3, -2.0)):
        cameras = ring_of_cameras(6)
        moved = replace(cameras, viewmats=cameras.viewmats.double().clone())
        moved.viewmats[:, :3, 3:] = scale * moved.viewmats[:, :3, 3:] - moved.viewmats[:, :3, :3] @ torch.full(
            (3, 1), offset, dtype=torch.float64
        )
        frame = Frame.of(moved, None)
        places = frame.shown(moved.centers.numpy())
        assert np.linalg.norm(places, axis=1).max() == pytest.approx(SIZE, rel=1e-6)
        np.testing.assert_allclose(places.mean(0), 0, atol=1e-6)


def test_a_pose_comes_back_as_the_camera_it_was_made_of():
    cameras = ring_of_cameras(5, size=40)
    frame = Frame.of(cameras, None)
    for index in range(5):
        pose = frame.placed(cameras[index])
        camera = frame.camera(pose, 40, 40, None)
        torch.testing.assert_close(camera.viewmats, cameras[index].viewmats, atol=1e-5, rtol=0)
        torch.testing.assert_close(camera.Ks, cameras[index].Ks, atol=1e-4, rtol=0)
        assert camera.times is None
        assert pose.near(pose)
        assert not pose.near(frame.placed(cameras[(index + 1) % 5]))
    assert frame.camera(pose, 40, 40, 0.25).times.tolist() == [0.25]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_up_is_the_cameras_up(axis):
    cameras = ring_of_cameras(8)
    turned = torch.eye(3).roll(axis, 0)  # a rotation: z becomes another axis
    viewmats = cameras.viewmats.clone()
    viewmats[:, :3, :3] = viewmats[:, :3, :3] @ turned.T
    up = Frame.of(replace(cameras, viewmats=viewmats), None).up
    np.testing.assert_allclose(up, (turned @ torch.tensor([0.0, 0, 1])).numpy(), atol=1e-5)


def test_forward_facing_cameras_do_not_blow_up_the_scene():
    cameras = ring_of_cameras(6, radius=0.01)
    points = torch.tensor([[0.0, 0, 10], [1.0, 0, 10], [0.0, 1, 10]])
    assert Frame.of(cameras, points).scale == pytest.approx(SIZE / 3, rel=0.05)


def test_a_visit_begins_at_the_camera_that_sees_most():
    cameras = ring_of_cameras(6)
    away = cameras.viewmats.clone()
    away[:5, :3, :3] = torch.diag(torch.tensor([-1.0, 1, -1])) @ away[:5, :3, :3]  # five look the other way
    away[:5, :3, 3:] = -away[:5, :3, :3] @ cameras.centers[:5, :, None]
    index, depth = first_view(replace(cameras, viewmats=away), 0.2 * torch.randn(50, 3))
    assert index == 5
    assert depth == pytest.approx(float(cameras.centers[0].norm()), abs=0.2)
    index, depth = first_view(cameras, None)
    assert depth == pytest.approx(float(cameras.centers[0].norm()), rel=0.01)


def test_a_whole_photograph_fits_a_narrow_window():
    frame = Frame.of(cameras := ring_of_cameras(4, size=30), None)
    pose = frame.placed(cameras[0])
    assert pose.fitted(2.0).fov == pytest.approx(pose.fov)
    narrow = pose.fitted(0.5)
    across = 2 * math.atan(0.5 * math.tan(narrow.fov / 2))
    assert across == pytest.approx(pose.fov)  # the photograph is a square


# Splats


def test_covariances_are_turned_ellipsoids():
    half = math.sqrt(0.5)
    quats = torch.tensor([[2.0, 0, 0, 0], [half, 0, 0, half]])  # none, and a quarter turn about z
    found = covariance_matrices(quats, torch.tensor([[1.0, 2, 3], [1.0, 2, 3]]))
    torch.testing.assert_close(found[0], torch.diag(torch.tensor([1.0, 4, 9])))
    torch.testing.assert_close(found[1], torch.diag(torch.tensor([4.0, 1, 9])), atol=1e-6, rtol=0)


def test_splats_are_in_the_viewers_frame_without_what_nobody_sees():
    model = ball_of_gaussians(20)
    with torch.no_grad():
        model.opacities[3] = -20.0
        model.means[5, 1] = float("nan")
        model.scales[7] = 20.0  # larger than half precision holds
    frame = Frame(np.array([1.0, 2.0, 3.0]), 4.0, np.array([0.0, 0, 1]))
    arrays = splat_arrays(model, None, frame)
    kept = [index for index in range(20) if index not in (3, 5)]
    means = model.means.detach()[kept].numpy()
    np.testing.assert_allclose(arrays.centers, 4 * (means - [1, 2, 3]), rtol=1e-5)
    np.testing.assert_allclose(arrays.covariances[0], np.eye(3) * (4 * 0.07) ** 2, rtol=1e-4)
    assert np.isfinite(arrays.covariances.astype(np.float16)).all()
    np.testing.assert_allclose(arrays.rgbs, 0.5 + 0.5 * np.sin(3 * means), atol=1e-5)
    np.testing.assert_allclose(arrays.opacities, 0.95, atol=1e-6)


# Pictures


class Slope(MarchedModel):
    """A plane x = z - 4 that fills every picture, coloured by where it is hit; counts the rays of each request."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.asked = []

    def march(self, rays, background):
        along = 4 / (rays.directions[:, 2] - rays.directions[:, 0])
        points = rays.directions * along[:, None]
        self.asked.append(len(along))
        alpha = torch.ones(len(along), 1)
        normal = torch.tensor([1.0, 0, -1]).expand(len(along), 3) / math.sqrt(2) if self.draw_normals else None
        return Rendering(self.scale * (0.5 + 0.1 * points).clamp(0, 1), alpha, along[:, None], normal)

    @classmethod
    def from_tensors(cls, config, tensors):
        return cls()


def window(width=60, height=40):
    return ToySplit(1, size=(width, height)).cameras[0]


def test_pictures_get_finer_until_the_window_is_filled():
    assert sizes(800, 600, 2000) == [(52, 39), (103, 77), (207, 155), (413, 310), (800, 600)]
    assert sizes(20, 10, 5) == [(20, 10)]
    assert sizes(10, 400, 10)[0] == (1, 32)
    for width, height in sizes(1000, 10, 1):
        assert 1 <= height <= 10
        assert 32 <= width <= 1000


@pytest.mark.parametrize("model", [Slope(), Disc(), ball_of_gaussians(50)])
def test_the_last_picture_is_the_models_own(model):
    model.train()
    wish = Wish("color", window(), torch.tensor([0.2, 0.4, 0.6]))
    pictures = [drawn for drawn in drawing(model, wish, Pace(3000)) if drawn is not None]
    assert [drawn.final for drawn in pictures] == [False] * (len(pictures) - 1) + [True]
    assert len(pictures) > 1
    assert pictures[0].pixels.shape[0] < 40
    assert model.training
    own = model.eval().render(wish.camera, background=wish.background).color[0]
    np.testing.assert_array_equal(pictures[-1].pixels, to_bytes(own))


def test_rays_are_drawn_in_pieces_that_take_a_moment():
    model = Slope()
    pieces = list(drawing(model, Wish("color", window(), BLACK), Pace(5000)))
    assert model.asked[0] == 500  # a tenth of a second at that pace; later ones follow what was measured
    assert sum(model.asked) == sum(w * h for w, h in sizes(60, 40, 500))
    assert len(pieces) == len(model.asked)


def test_normals_are_the_models_own_or_follow_from_depth():
    model = Slope()
    (*_, last) = drawing(model, Wish("normal", window(), BLACK), Pace())
    expected = to_bytes(0.5 + 0.5 * torch.tensor([1.0, 0, -1]) / math.sqrt(2))
    assert (last.pixels == expected).all()
    assert not model.draw_normals
    drawn = model.eval().render(window(), background=BLACK)
    flat = Rendering(drawn.color[0], drawn.alpha[0], drawn.depth[0])
    found = normals_from_depth(flat, window())[2:-2, 2:-2]
    torch.testing.assert_close(found, (torch.tensor([1.0, 0, -1]) / math.sqrt(2)).expand_as(found), atol=0.02, rtol=0)


def test_depth_is_bright_where_it_is_near():
    (*_, last) = drawing(Slope(), Wish("depth", window(), BLACK), Pace())
    brightness = last.pixels.astype(int).sum(-1)
    assert last.pixels.shape == (40, 60, 3)
    assert brightness[:, 5].mean() > brightness[:, 30].mean() > brightness[:, 55].mean()


def test_the_error_is_that_of_the_evaluation_where_the_photograph_is():
    split = ToySplit(2, noise=0.1)
    target = split.target(1, BLACK)
    wish = Wish("error", window(80, 30), BLACK, Photograph(split.cameras[1], target, None))
    (*_, last) = drawing(Disc(), wish, Pace())
    own = Disc().eval().render(split.cameras[1], background=BLACK).color[0].clamp(0, 1)
    assert f"{psnr(own, target).item():.2f} dB at 40x30" in last.said
    np.testing.assert_array_equal(last.pixels[:, 20:60], error_picture(own, target))
    assert (last.pixels[:, :20] == last.pixels[0, 0]).all()  # nothing but grey beside it
    with pytest.raises(ValueError, match="photograph"):
        next(drawing(Disc(), Wish("error", window(), BLACK), Pace()))


def test_what_a_mask_leaves_out_is_not_an_error():
    split = ToySplit(2, noise=0.1, masked=True)
    found = Photograph(split.cameras[1], split.target(1, BLACK), split.mask(1))
    (*_, last) = drawing(Disc(), Wish("error", window(40, 30), BLACK, found), Pace())
    assert (last.pixels[:5] == last.pixels[0, 0]).all()
    assert len(np.unique(last.pixels[5:-5, 5:-5].reshape(-1, 3), axis=0)) > 20
    own = Disc().eval().render(split.cameras[1], background=BLACK).color[0].clamp(0, 1)
    assert f"{psnr(own, found.target, found.mask).item():.2f} dB" in last.said


def test_a_photograph_off_centre_lies_off_centre_in_the_window():
    photograph = window(40, 30)
    photograph.Ks[0, 0, 2] = 10.0  # its axis is a quarter from the left
    pixels = np.full((30, 40, 3), 200, np.uint8)
    shown = in_window(pixels, photograph, window(80, 30))[15, :, 0] == 200
    np.testing.assert_array_equal(np.flatnonzero(shown), np.arange(30, 70))


# Photographs, meshes and clouds


def test_views_are_spread_over_a_long_split(scene, monkeypatch):
    assert [view.name for view in items.chosen_views(scene)[:2]] == ["train: train/r_0.png", "train: train/r_1.png"]
    monkeypatch.setattr(items, "MOST_VIEWS", 3)
    chosen = items.chosen_views(scene)
    assert [(view.split, view.index) for view in chosen] == [
        *[("train", index) for index in (0, 4, 7)],
        *[("test", index) for index in (0, 1, 2)],
    ]
    picture = items.thumbnail(scene, chosen[1])
    assert picture.shape == (32, 32, 3)
    np.testing.assert_array_equal(picture, to_bytes(scene.splits["train"].target(4, scene.background)))
    small = items.photograph(scene, chosen[0], 16)
    assert small.target.shape == (16, 16, 3)
    assert small.camera.sizes.tolist() == [[16, 16]]


def test_frusta_do_not_meet():
    cameras = ring_of_cameras(30)
    gap = float((cameras.centers[0] - cameras.centers[1]).norm())
    assert items.frustum_size(cameras) == pytest.approx(min(gap / 2, 0.4), rel=0.2)
    assert items.frustum_size(cameras[0]) > 0


PLY = """ply
format ascii 1.0
element vertex 3
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
element face 1
property list uchar int vertex_indices
end_header
0 0 0 255 0 0
2 0 0 0 255 0
0 2 0 0 0 255
3 0 1 2
"""


def test_meshes_of_a_run_are_shown_with_their_colours_in_the_scenes_frame(tmp_path):
    (tmp_path / "mesh-eval").mkdir()
    (tmp_path / "mesh.ply").write_text(PLY)
    (tmp_path / "mesh-eval" / "accuracy_samples.ply").write_text(PLY.replace("element face 1", "element face 0")[:-8])
    (tmp_path / "other.ply").write_text(PLY)
    files = items.shape_files(tmp_path)
    assert [path.name for path in files] == ["accuracy_samples.ply", "mesh.ply"]
    frame = Frame(np.array([1.0, 0, 0]), 2.0, np.array([0.0, 0, 1]))
    to_truth = torch.eye(4)
    to_truth[0, 3] = 5.0
    shape = items.read_shape(files[1], frame, to_truth)
    np.testing.assert_allclose(shape.vertices, [[-12, 0, 0], [-8, 0, 0], [-12, 4, 0]])
    np.testing.assert_array_equal(shape.faces, [[0, 1, 2]])
    np.testing.assert_array_equal(shape.colors, 255 * np.eye(3, dtype=np.uint8))
    assert items.read_shape(files[0], frame, None).faces is None
    files[1].write_text(PLY[:-30])
    with pytest.raises(UserError, match=r"mesh\.ply"):
        items.read_shape(files[1], frame, None)
    files[1].write_text(PLY.replace("0 0 0 255", "0 nan 0 255"))
    with pytest.raises(UserError, match="not finite"):
        items.read_shape(files[1], frame, None)


def test_large_meshes_are_thinned_out(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "MOST_FACES", 0)
    monkeypatch.setattr(items, "MOST_POINTS", 2)
    (tmp_path / "mesh.ply").write_text(PLY)
    shape = items.read_shape(tmp_path / "mesh.ply", Frame(np.zeros(3), 1.0, np.zeros(3)), None)
    assert shape.faces is None
    assert len(shape.vertices) == len(shape.colors) == 2


# Addresses


@pytest.fixture
def taken():
    """A port that somebody listens at."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held.getsockname()[1]


def test_a_taken_port_is_refused_when_asked_for_and_passed_over_otherwise(taken, monkeypatch):
    with pytest.raises(UserError, match=f"port {taken} at 127.0.0.1: Address already in use"):
        address.choose_port("127.0.0.1", taken)
    monkeypatch.setattr(address, "FIRST_PORT", taken)
    found = address.choose_port("127.0.0.1", None)
    assert taken < found < taken + address.PORTS
    monkeypatch.setattr(address, "PORTS", 1)
    with pytest.raises(UserError, match="no free port"):
        address.choose_port("127.0.0.1", None)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 0, "1 to 65535"),
        ("127.0.0.1", 70000, "1 to 65535"),
        ("no.such.host.invalid", None, "--host no.such.host.invalid: not a name"),
        ("192.0.2.1", None, "--host 192.0.2.1: not an address of this machine"),
    ],
)
def test_addresses_that_cannot_be(host, port, message):
    with pytest.raises(UserError, match=message):
        address.choose_port(host, port)


def test_the_url_can_be_used(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "cruncher")
    monkeypatch.setattr(address, "_user", lambda: "ada")
    shown, tunnel = address.introduction("127.0.0.1", 8085)
    assert shown == "viewer: http://127.0.0.1:8085"
    assert "ssh -L 8085:127.0.0.1:8085 ada@cruncher" in tunnel
    shown, warning = address.introduction("0.0.0.0", 8085)
    assert shown == "viewer: http://cruncher:8085"
    assert "warning: --host 0.0.0.0" in warning
    assert address.url("::1", 80) == "http://[::1]:80"
    assert "ssh -L 80:[::1]:80" in address.introduction("::1", 80)[1]


@pytest.mark.parametrize(
    ("origin", "asked", "host", "may"),
    [
        (None, "127.0.0.1:8080", "127.0.0.1", True),
        ("http://127.0.0.1:8080", "127.0.0.1:8080", "127.0.0.1", True),
        ("http://localhost:9000", "localhost:9000", "127.0.0.1", True),  # through ssh -L 9000:...
        ("http://evil.example", "127.0.0.1:8080", "127.0.0.1", False),
        ("http://evil.example:8080", "evil.example:8080", "127.0.0.1", False),  # a name that points here
        ("http://127.0.0.1:8081", "127.0.0.1:8080", "127.0.0.1", False),
        ("null", "127.0.0.1:8080", "127.0.0.1", False),
        ("http://cruncher:8080", "cruncher:8080", "0.0.0.0", True),
        ("http://evil.example", "cruncher:8080", "0.0.0.0", False),
    ],
)
def test_pages_of_other_sites_may_not_connect(origin, asked, host, may):
    assert address.may_connect(origin, asked, host) is may


def test_wrong_input_is_one_line(tmp_path, taken, monkeypatch):
    with pytest.raises(UserError, match="expected a run folder"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match=str(taken)):
        main([str(tmp_path), "--port", str(taken)])
    with pytest.raises(UserError, match="unknown flag; did you mean --port"):
        main([str(tmp_path), "--prt", "1"])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json"):
        main([str(tmp_path)])
    monkeypatch.setitem(__import__("sys").modules, "viser", None)
    with pytest.raises(UserError, match=r"pip install 'nfc-splat\[view\]'"):
        main([str(tmp_path)])


def test_another_tools_gaussians_are_shown_under_their_name(scene, tmp_path, monkeypatch, capsys):
    write_gaussians(tmp_path / "other.ply", ball_of_gaussians(30).splats(), False)
    seen = []

    def look(viewer, model):
        seen.append((viewer._status.value, len(model.means), viewer._mode.options))
        signal.raise_signal(signal.SIGINT)
        return True

    monkeypatch.setattr(Viewer, "work", look)
    assert main([str(tmp_path / "other.ply"), "--scene", str(scene.root), "--device", "cpu"]) == 0
    assert seen == [("other.ply, 30 primitives", 30, ("splats", "color", "depth", "normal", "error"))]
    assert capsys.readouterr().out.endswith("viewer closed\n")


def test_without_a_name_the_ssh_line_says_so(monkeypatch):
    def nameless():
        raise KeyError("uid")

    monkeypatch.setattr(address.getpass, "getuser", nameless)
    assert address._user() == "USER"
