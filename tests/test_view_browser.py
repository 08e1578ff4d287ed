"""The viewer in a real browser: what a visitor sees is what the model draws."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dvgo_toys import toy_config, training_config
from eval_toys import write_blender_scene
from moving_toys import write_moving_scene
from PIL import Image
from view_toys import Rising, ball_of_gaussians, served

from nfc_splat.data import load_scene
from nfc_splat.eval.pictures import to_bytes
from nfc_splat.train import train
from nfc_splat.training.load import load_run

REPOSITORY = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 600, 420
FREE = slice(215, None), slice(150, 450)  # below the controls, where the ball is
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return write_blender_scene(tmp_path_factory.mktemp("view") / "ball", train=8, test=2)


@pytest.fixture
def visit(browser_page):
    """Opens a viewer's page."""

    def open_page(url):
        return browser_page(url, width=WIDTH, height=HEIGHT, allowed=(url, "blob:", "data:"))

    return open_page


def seen(page):
    """What is on the screen below the controls, [H, W, 3] in [0, 1]."""
    with Image.open(io.BytesIO(page.screenshot())) as image:
        return np.asarray(image.convert("RGB"))[FREE] / 255


def difference(picture, other):
    return float(np.abs(picture - other).mean())


def shows(page, expected, most=0.01, seconds=100):
    """Wait until the page shows the picture `expected`, whose mean error may be `most`; the last screenshot."""
    assert difference(expected, 1.0) > 10 * most  # an empty page would be farther away
    until = time.monotonic() + seconds
    while difference(picture := seen(page), expected) > most and time.monotonic() < until:
        time.sleep(0.5)
    assert difference(picture, expected) < most
    return picture


def own(viewer, model, background, moment=None):
    """What the model draws where visits begin, below the controls."""
    camera = viewer._frame.camera(viewer._first.fitted(WIDTH / HEIGHT), WIDTH, HEIGHT, moment)
    with torch.no_grad():
        drawn = model.render(camera, background=background).color[0]
    return to_bytes(drawn)[FREE] / 255


def choose(page, label, value):
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=value, exact=True).click()


def complaints(visit):
    # viser's geometry of splats has two coordinates, of which three.js complains.
    return [said for said in visit.errors if "computeBoundingSphere" not in said] + visit.refused


def test_splats_are_drawn_by_the_browser(visit, ball):
    scene = load_scene(ball, undistort=True)
    model = ball_of_gaussians()
    with served(model, scene) as viewer:
        visited = visit(f"http://127.0.0.1:{viewer._server.get_port()}")
        page = visited.page
        shows(page, own(viewer, model, scene.background))
        page.get_by_label("cameras", exact=True).click()
        picture = shows(page, own(viewer, model, scene.background))
        assert picture.std() > 0.15
        assert picture[-1].min() > 0.98  # the scene's white lies behind
        assert len(viewer._frusta) == 10
        assert viewer._mode.value == "splats"
        choose(page, "show", "error")
        page.get_by_text("PSNR").or_(page.locator("input[value^=PSNR]")).wait_for()
        assert difference(seen(page), picture) > 0.1
        assert complaints(visited) == []


def test_the_time_slider_moves_what_moves(visit, tmp_path):
    scene = load_scene(write_moving_scene(tmp_path / "disc"), undistort=True)
    model = Rising(ball_of_gaussians().config, ball_of_gaussians().splats(), 0).eval()
    with served(model, scene, moves=True) as viewer:
        visited = visit(f"http://127.0.0.1:{viewer._server.get_port()}")
        viewer._cameras.value = False
        first = shows(visited.page, own(viewer, model, scene.background, 0.0))
        visited.page.get_by_role("slider").focus()
        visited.page.keyboard.press("End")
        risen = own(viewer, model, scene.background, 1.0)
        assert difference(first, risen) > 0.1
        shows(visited.page, risen)
        assert complaints(visited) == []


@pytest.fixture(scope="module")
def dvgo(ball, tmp_path_factory):
    out = tmp_path_factory.mktemp("view") / "run"
    assert train(training_config(ball, out, toy_config(steps=80))) == 0
    return out


def test_the_command_shows_a_field_and_ends_with_ctrl_c(visit, dvgo):
    command = [sys.executable, "-m", "nfc_splat.view", str(dvgo)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        url = re.fullmatch(r"viewer: (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())[1]
        visited = visit(url)
        page = visited.page
        page.get_by_label("cameras", exact=True).click()
        run = load_run(dvgo)
        expected = at_the_first_view(run)
        picture = shows(page, expected)
        assert picture.std() > 0.15
        choose(page, "show", "depth")
        until = time.monotonic() + 100
        while difference(depth := seen(page), picture) < 0.1 and time.monotonic() < until:
            time.sleep(0.5)
        assert len(np.unique((255 * depth).round().reshape(-1, 3), axis=0)) > 100
        assert complaints(visited) == []
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        rest = process.stdout.read()
        assert "ssh -L" in rest
        assert rest.endswith("viewer closed\n")
        assert "Traceback" not in rest
    finally:
        process.kill()


def at_the_first_view(run):
    """What the model draws where visits begin, without a viewer."""
    from nfc_splat.view.space import Frame, first_view

    cameras = run.scene.splits["train"].cameras
    frame = Frame.of(cameras, run.scene.points)
    index, _ = first_view(cameras, run.scene.points)
    camera = frame.camera(frame.placed(cameras[index]).fitted(WIDTH / HEIGHT), WIDTH, HEIGHT, None)
    with torch.no_grad():
        drawn = run.model.render(replace(camera), background=run.scene.background).color[0]
    return to_bytes(drawn)[FREE] / 255
