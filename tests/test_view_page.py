"""The page's server: what visitors get when they go somewhere, and who gets nothing."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from eval_toys import write_blender_scene
from test_view import PLY
from view_toys import Rising, Visitor, ball_of_gaussians, let_in
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.errors import UserError
from nfc_splat.view import address, page
from nfc_splat.view.items import read_shape
from nfc_splat.view.page import Subject, Viewer

viser = pytest.importorskip("viser", reason="needs the view extra")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return load_scene(write_blender_scene(tmp_path_factory.mktemp("view") / "ball", train=8, test=2), undistort=True)


@pytest.fixture(scope="module")
def model():
    return ball_of_gaussians()


@pytest.fixture
def viewer(request, scene, model, tmp_path):
    """Of Gaussians that stand still, unless a test asks for others."""
    moves = getattr(request, "param", False)
    subject = Subject(scene, "ball", tmp_path, splats=True, moves=moves, points=model.means.detach())
    viewer = Viewer(subject, "127.0.0.1", address.choose_port("127.0.0.1", None))
    yield viewer
    viewer.close()


def opened(scene, port=None):
    """A viewer of nothing but the photographs."""
    subject = Subject(scene, "ball", None, splats=False, moves=False, points=None)
    return closing(Viewer(subject, "127.0.0.1", port or address.choose_port("127.0.0.1", None)))


@pytest.fixture
def visitor(viewer):
    visitor = Visitor()
    let_in(viewer, visitor)
    return visitor


def work_off(viewer, model):
    """All there is to do; how many pieces it took."""
    pieces = 0
    while viewer.work(model):
        pieces += 1
    return pieces


def test_nothing_is_done_for_nobody(viewer, model):
    assert not viewer.watched
    assert work_off(viewer, model) == 0
    assert viewer._splats is None


def test_who_left_before_being_noted_is_nobody(viewer):
    gone = Visitor()
    viewer._leave(gone)
    viewer._enter(gone)
    assert not viewer.watched


def test_a_visitor_gets_splats_over_the_scenes_background(viewer, visitor, model):
    assert viewer.watched
    work_off(viewer, model)
    assert len(viewer._splats.centers) == len(model.means)
    (background,) = visitor.pictures
    assert (background == 255).all()
    viewer._moved(viewer._visitors[0])
    assert work_off(viewer, model) == 0  # the browser draws: moving about asks for nothing
    viewer.model_changed("step 2")
    assert work_off(viewer, model) == 1
    assert viewer._status.value == "step 2"


def test_who_moves_on_gets_pictures_from_there_and_no_others(viewer, visitor, model):
    viewer._mode.value = "color"
    viewer._go(visitor, 0)
    work_off(viewer, model)
    first = visitor.pictures[-1]
    assert first.shape == (48, 64, 3)
    viewer._go(visitor, 3)
    work_off(viewer, model)
    camera = viewer._frame.camera(viewer._poses[3].fitted(64 / 48), 64, 48, None)
    with torch.no_grad():
        own = model.render(camera, background=torch.ones(3)).color[0].clamp(0, 1).numpy()
    assert np.abs(visitor.pictures[-1] / 255 - own).mean() < 0.005
    assert np.abs(visitor.pictures[-1] / 255 - first / 255).mean() > 0.05


def test_the_error_is_shown_at_photographs(viewer, visitor, model):
    viewer._mode.value = "error"
    visitor.camera.position = viewer._poses[9].position + 0.5
    visitor.camera.wxyz = viewer._poses[9].wxyz
    viewer._moved(viewer._visitors[0])
    work_off(viewer, model)
    assert viewer._said.value == "go to a photograph to see the error"
    viewer._mode_chosen(visitor)  # choosing the mode brings the visitor to the nearest photograph
    np.testing.assert_allclose(visitor.camera.position, viewer._poses[9].position)
    work_off(viewer, model)
    assert viewer._said.value.startswith("PSNR ")
    assert viewer._said.visible
    viewer._place_chosen(visitor, viewer._views[2].name)
    np.testing.assert_allclose(visitor.camera.position, viewer._poses[2].position)


def test_photographs_that_are_too_close_make_way(viewer, visitor):
    viewer._go(visitor, 4)
    assert [index for index, handle in enumerate(viewer._frusta) if not handle.visible] == [4, 9]  # 9 is beside 4
    visitor.camera.position = np.array([100.0, 0, 0])
    viewer._show_frusta()
    assert all(handle.visible for handle in viewer._frusta)
    viewer._cameras.value = False
    viewer._show_frusta()
    assert not any(handle.visible for handle in viewer._frusta)


@pytest.mark.parametrize("viewer", [True], indirect=True)
def test_time_moves_the_splats(viewer, visitor):
    rising = Rising(ball_of_gaussians().config, ball_of_gaussians().splats(), 0).eval()
    work_off(viewer, rising)
    before = viewer._splats.centers.copy()
    viewer._time.value = 0.5
    viewer._time_chosen()
    work_off(viewer, rising)
    moved = viewer._splats.centers - before
    np.testing.assert_allclose(moved, np.tile([0, 0, 0.5 * viewer._frame.scale], (len(moved), 1)), atol=1e-4)


def session(server, **headers):
    address = f"ws://127.0.0.1:{server.get_port()}"
    return connect(address, subprotocols=[f"viser-v{viser.__version__}"], **headers)


def test_only_its_own_page_may_connect(viewer):
    port = viewer._server.get_port()
    with session(viewer._server, origin=f"http://127.0.0.1:{port}") as own:
        assert len(own.recv(timeout=20)) > 0
    with session(viewer._server, origin="http://evil.example") as foreign:
        assert farewell(foreign) == "this page may not connect"


def farewell(connection):
    """Why the server closes a connection."""
    try:
        while True:
            connection.recv(timeout=20)
    except ConnectionClosed as closed:
        return closed.rcvd.reason


def await_connections(server, count):
    """Wait until the server has let go of all but so many."""
    deadline = time.monotonic() + 20
    while (live := len(server._websock_server._live_connections)) != count:
        assert time.monotonic() < deadline, f"{live} connections"
        time.sleep(0.01)


def test_who_connected_before_the_rules_were_made_is_looked_at_too(monkeypatch):
    monkeypatch.setattr(page, "MOST_VISITORS", 2)
    server = page._listen("ball", "127.0.0.1", address.choose_port("127.0.0.1", None))
    with ExitStack() as stack:
        stack.callback(server.stop)
        links = []
        for origin in (None, "http://evil.example", None, None):
            links.append(stack.enter_context(session(server, origin=origin)))
            links[-1].recv(timeout=20)
        page._refuse_strangers(server, "127.0.0.1")
        assert farewell(links[1]) == "this page may not connect"
        assert [farewell(link) for link in links[2:]] == 2 * ["too many visitors"]
        await_connections(server, 1)


def test_visitors_beyond_the_limit_are_sent_away(viewer, monkeypatch):
    monkeypatch.setattr(page, "MOST_VISITORS", 2)
    with session(viewer._server) as first, session(viewer._server) as second:
        assert first.recv(timeout=20)
        assert second.recv(timeout=20)
        with session(viewer._server) as third:
            assert farewell(third) == "too many visitors"
        first.close()
        await_connections(viewer._server, 1)
        with session(viewer._server) as fourth:
            assert fourth.recv(timeout=20)


def test_visitors_cannot_open_a_tunnel(viewer, monkeypatch):
    opened, arrived = [], Event()
    monkeypatch.setattr("viser._viser.ViserTunnel", lambda *arguments: opened.append(arguments))
    with ThreadPoolExecutor(1) as pool, session(viewer._server) as visitor:
        monkeypatch.setattr(viewer._server, "_thread_executor", pool)  # one thread: what is asked first is done first
        viewer._server._websock_server.register_handler(viser._messages.ShareUrlRequest, lambda *_: arrived.set())
        visitor.send(msgspec.msgpack.encode({"type": "ShareUrlRequest"}))
        assert arrived.wait(20)
        pool.submit(lambda: None).result(20)
        assert opened == []


def test_a_port_that_is_taken_at_the_last_moment(viewer, scene):
    taken = viewer._server.get_port()
    with pytest.raises(UserError, match=f"port {taken} .* taken a moment ago"):
        opened(scene, taken)


def test_a_photograph_that_cannot_be_read_costs_only_its_picture(tmp_path, caplog):
    root = write_blender_scene(tmp_path / "ball", train=3, test=1)
    scene = load_scene(root, DataConfig(image_cache_gb=0), undistort=True)
    (damaged,) = root.glob("train/*1.png")
    damaged.write_bytes(b"no picture")
    with opened(scene) as viewer:
        assert [handle.image is None for handle in viewer._frusta] == [False, True, False, False]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the viewer shows no photograph of train: ")
    assert str(damaged) in line


def test_what_fails_while_the_page_is_built_leaves_no_server(scene, monkeypatch):
    def fail(viewer):
        raise RuntimeError("no controls")

    monkeypatch.setattr(Viewer, "_add_controls", fail)
    port = address.choose_port("127.0.0.1", None)
    with pytest.raises(RuntimeError, match="no controls"), opened(scene, port):
        pass
    assert address.choose_port("127.0.0.1", port) == port


def box_event(viewer, visitor, value):
    """A visitor ticks the first mesh's box, or unticks it."""
    box = viewer._server.gui.add_checkbox("mesh.ply", value)
    box.on_update(lambda event: viewer._toggle_shape(event, Path("mesh.ply"), 0))
    return SimpleNamespace(target=box, client=visitor)


def test_shapes_are_read_when_they_are_wanted(viewer, visitor, tmp_path):
    path = tmp_path / "mesh.ply"
    path.write_text(PLY)
    event = box_event(viewer, visitor, True)
    viewer._toggle_shape(event, path, 0)
    handle = viewer._server.scene.get_handle_by_name("/shapes/0")
    assert handle.visible
    path.unlink()
    event.target.value = False
    assert not handle.visible
    assert visitor.told == []


def test_a_shape_that_cannot_be_read_is_told_and_its_box_unticked(viewer, visitor, tmp_path):
    event = box_event(viewer, visitor, True)
    viewer._toggle_shape(event, tmp_path / "mesh.ply", 0)
    assert "no such file" in visitor.told[0]
    assert event.target.value is False


def test_a_box_that_changes_while_its_shape_is_read(viewer, visitor, tmp_path, monkeypatch):
    path = tmp_path / "mesh.ply"
    path.write_text(PLY)
    event, reads = box_event(viewer, visitor, True), []

    def read_slowly(*arguments):
        reads.append(arguments)
        event.target.value = False
        event.target.value = True
        event.target.value = False
        return read_shape(*arguments)

    monkeypatch.setattr(page, "read_shape", read_slowly)
    viewer._toggle_shape(event, path, 0)
    assert len(reads) == 1
    handle = viewer._server.scene.get_handle_by_name("/shapes/0")
    assert not handle.visible
    event.target.value = True
    assert handle.visible
    assert len(reads) == 1


def test_a_picture_that_fails_is_its_visitors_trouble_alone(viewer, visitor, model, monkeypatch):
    other = Visitor(client_id=1)
    let_in(viewer, other)
    viewer._go(visitor, 0)
    gone = UserError(f"{viewer._subject.scene.root}/0.png: there is no such file")

    def missing(*_):
        raise gone

    monkeypatch.setattr(page, "photograph", missing)
    viewer._mode.value = "error"
    work_off(viewer, model)
    assert visitor.told == ["0.png: there is no such file"]
    assert other.told == []
    assert len(other.pictures) > 0
    viewer.model_changed("step 2")
    work_off(viewer, model)
    assert len(visitor.told) == 1  # not at every step of a training
    viewer._mode.value = "color"
    work_off(viewer, model)
    assert visitor.pictures[-1].shape == (48, 64, 3)
    viewer._mode.value = "error"
    work_off(viewer, model)
    assert len(visitor.told) == 2
    gone = RuntimeError(f"{viewer._subject.scene.root} is full")
    viewer.model_changed("step 3")
    work_off(viewer, model)
    assert visitor.told[-1] == "RuntimeError; more is in the terminal where the viewer runs"
    gone = UserError("/mnt/photos/of/me/0.png: is 3/4 of a picture")
    viewer.model_changed("step 4")
    work_off(viewer, model)
    assert visitor.told[-1] == "0.png: is 3/4 of a picture"
