"""The built-in scenes: their layout, their geometry seen through the project's own readers, their reproducibility."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nfc_splat import demo
from nfc_splat.data import load_scene
from nfc_splat.demo import Settings, write_scene
from nfc_splat.errors import UserError, run_command
from nfc_splat.open3d_loader import load_open3d
from nfc_splat.scenery import lighting

try:
    load_open3d()
except UserError as error:
    pytest.skip(f"the ray tracer needs open3d: {error}", allow_module_level=True)

VIEWS = 30
SMALL = {"views": VIEWS, "width": 64, "height": 48, "supersample": 1}
DEPTH_STEP = 1 / 6553.5


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("demo") / "room", Settings(**SMALL))


@pytest.fixture(scope="module")
def urn(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("demo") / "urn", Settings("object", **SMALL))


@pytest.fixture
def dim(monkeypatch):
    """Hardly any reflected light, which takes most of a small scene's time: for tests of folders, not of pictures."""
    monkeypatch.setattr(lighting, "bake", partial(lighting.bake, gathers=1, bounces=0))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def depths(room: Path) -> np.ndarray:
    """[N, H, W] metres."""
    files = sorted((room / "results").glob("depth*.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype(np.float64) * DEPTH_STEP


class Caster:
    """A mesh file, read by open3d: called with rays [..., 6], the distances along them."""

    def __init__(self, mesh: Path):
        open3d = load_open3d()
        self.tensor = open3d.core.Tensor
        self.scene = open3d.t.geometry.RaycastingScene()
        self.scene.add_triangles(open3d.t.io.read_triangle_mesh(str(mesh)))

    def __call__(self, rays: np.ndarray) -> np.ndarray:
        return self.scene.cast_rays(self.tensor(rays.astype(np.float32)))["t_hit"].numpy()


def test_room_has_replicas_layout(room):
    assert set(contents(room)) == {
        "demo.json",
        "traj.txt",
        "cam_params.json",
        "room_mesh.ply",
        *(f"results/{kind}" for i in range(VIEWS) for kind in (f"frame{i:06d}.jpg", f"depth{i:06d}.png")),
    }
    camera = json.loads((room / "cam_params.json").read_text())["camera"]
    assert set(camera) == {"w", "h", "fx", "fy", "cx", "cy", "scale"}
    assert (camera["w"], camera["h"], camera["cx"], camera["cy"], camera["scale"]) == (64, 48, 31.5, 23.5, 6553.5)
    assert np.loadtxt(room / "traj.txt").shape == (VIEWS, 16)
    depth = Image.open(room / "results" / "depth000000.png")
    assert depth.size == (64, 48)
    assert depth.mode.startswith("I;16")
    assert Image.open(room / "results" / "frame000000.jpg").mode == "RGB"


def test_room_matches_the_layout_of_the_real_replica(room, data_root):
    real = data_root / "replica_room0"
    theirs = json.loads((real / "cam_params.json").read_text())
    ours = json.loads((room / "cam_params.json").read_text())
    assert ours.keys() == theirs.keys()
    assert ours["camera"].keys() == theirs["camera"].keys()
    line = (real / "room0" / "traj.txt").read_text().splitlines()[0]
    assert len((room / "traj.txt").read_text().splitlines()[0].split()) == len(line.split())
    for name in ("results/frame000000.jpg", "results/depth000000.png"):
        their, our = Image.open(real / "room0" / name), Image.open(room / name)
        assert (our.mode, our.format) == (their.mode, their.format)


def test_room_is_closed_and_cameras_keep_their_distance(room):
    depth = depths(room)
    assert depth.min() > 0.3  # nothing in the camera's face, and no hole: that would be 0
    assert depth.max() < 9.9  # 16 bits end at 10 m


def test_the_mesh_seen_through_the_readers_cameras_reproduces_the_depth(room):
    """Ties together the poses, the intrinsics' half pixel, the depth scale and the mesh."""
    scene = load_scene(room, undistort=True)
    assert scene.format == "replica"
    assert (len(scene.splits["train"]), len(scene.splits["test"])) == (27, 3)
    stored, cast = depths(room), Caster(room / "room_mesh.ply")
    for split in scene.splits.values():
        for k, name in enumerate(split.names):
            rays = split.cameras[k].rays()
            both = torch.cat([rays.origins.expand_as(rays.directions), rays.directions], -1)[0].numpy()
            error = np.abs(cast(both) - stored[int(name[-10:-4])])
            # Rays that graze a silhouette may fall to either side of it.
            assert np.quantile(error, 0.98) < 0.6 * DEPTH_STEP + 1e-5
            assert np.median(error) < 0.5 * DEPTH_STEP


class Reprojection:
    """The pixels of view i carried into view j by depth and poses alone."""

    def __init__(self, room: Path, i: int, j: int):
        poses = np.loadtxt(room / "traj.txt").reshape(-1, 4, 4)
        camera = json.loads((room / "cam_params.json").read_text())["camera"]
        here, there = (np.asarray(Image.open(room / f"results/depth{k:06d}.png")) * DEPTH_STEP for k in (i, j))
        x, y = np.meshgrid(np.arange(64) - camera["cx"], np.arange(48) - camera["cy"])
        local = np.stack([x / camera["fx"], y / camera["fy"], np.ones_like(x)], -1) * here[..., None]
        world = local @ poses[i, :3, :3].T + poses[i, :3, 3]
        local = (world - poses[j, :3, 3]) @ poses[j, :3, :3]
        column = np.rint(camera["fx"] * local[..., 0] / local[..., 2] + camera["cx"]).astype(int)
        row = np.rint(camera["fy"] * local[..., 1] / local[..., 2] + camera["cy"]).astype(int)
        self.inside = (local[..., 2] > 0.1) & (column >= 0) & (column < 64) & (row >= 0) & (row < 48)
        self.row, self.column = row[self.inside], column[self.inside]
        self.depth = local[..., 2][self.inside]
        self.seen = there[self.row, self.column]
        self.same = np.abs(self.depth - self.seen) < 0.03 * self.seen  # a pixel of slope


def test_a_view_reprojected_into_another_meets_the_same_surface(room):
    moved = [Reprojection(room, i, (i + step) % VIEWS) for i in range(VIEWS) for step in (1, VIEWS - 1)]
    depth, seen, same = (np.concatenate([getattr(m, name) for m in moved]) for name in ("depth", "seen", "same"))
    assert len(depth) > 50_000
    assert same.mean() > 0.85
    # What view j does not see is behind what it sees, never in front of it (but for silhouettes).
    assert (depth < 0.94 * seen).mean() < 0.03


def test_colours_of_one_point_agree_between_views(room):
    images = [np.asarray(Image.open(room / f"results/frame{k:06d}.jpg")) / 255.0 for k in range(VIEWS)]
    aligned, unaligned = [], []
    for i in range(VIEWS - 1):
        moved = Reprojection(room, i, i + 1)
        here = images[i][moved.inside][moved.same]
        aligned.append(np.abs(here - images[i + 1][moved.row, moved.column][moved.same]).mean())
        unaligned.append(np.abs(here - images[i + 1][moved.inside][moved.same]).mean())
    assert np.mean(aligned) < 0.05
    assert np.mean(aligned) < 0.5 * np.mean(unaligned)


def test_the_default_path_sees_every_piece_from_several_places(room):
    from nfc_splat.scenery import room as design
    from nfc_splat.scenery.casting import Geometry
    from nfc_splat.scenery.drawing import Lens

    parts = design.build(0).parts
    geometry, lens = Geometry(parts), Lens.of_angle(64, 48, design.FIELD_OF_VIEW)
    views = np.zeros(len(parts), dtype=int)
    poses = design.path(100)
    for pose in poses:
        hits = geometry.cast(pose[:3, 3], lens.directions(pose, 1).reshape(-1, 3))
        assert hits.hit.all()
        views[np.unique(geometry.triangle_part[hits.triangle])] += 1
    rare = {part.name: int(count) for part, count in zip(parts, views, strict=True) if count < 5}
    assert not rare
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    turns = np.degrees(np.arccos(np.einsum("ni,ni->n", poses[1:, :3, 2], poses[:-1, :3, 2])))
    assert steps.max() < 0.15
    assert turns.max() < 20
    assert np.linalg.det(poses[:, :3, :3]) == pytest.approx(1)


def test_object_is_a_blender_scene_with_straight_alpha(urn):
    scene = load_scene(urn, undistort=True)
    assert scene.format == "blender"
    assert (len(scene.splits["train"]), len(scene.splits["test"])) == (VIEWS, 7)
    assert scene.has_alpha
    frames = json.loads((urn / "transforms_train.json").read_text())["frames"]
    cast = Caster(urn / "urn_mesh.ply")
    assert Image.open(urn / (frames[0]["file_path"] + ".png")).mode == "RGBA"
    for split in scene.splits.values():
        for k in range(len(split)):
            rays = split.cameras[k].rays()
            both = torch.cat([rays.origins.expand_as(rays.directions), rays.directions], -1)[0].numpy()
            covered = np.isfinite(cast(both))
            alpha = split.image(k)[..., 3].numpy() > 127
            assert 0.05 < covered.mean() < 0.6
            assert (covered == alpha).mean() > 0.995


def test_object_mesh_is_an_urn_and_two_handles_all_closed(urn):
    open3d = load_open3d()
    mesh = open3d.io.read_triangle_mesh(str(urn / "urn_mesh.ply"))
    assert mesh.is_edge_manifold(allow_boundary_edges=False)
    assert mesh.is_vertex_manifold()
    assert mesh.is_orientable()
    clusters = np.asarray(mesh.cluster_connected_triangles()[1])
    assert len(clusters) == 3
    assert mesh.has_vertex_colors()


def test_one_seed_gives_the_same_bytes_and_another_does_not(urn, tmp_path):
    again = write_scene(tmp_path / "again", Settings("object", **SMALL))
    assert contents(again) == contents(urn)
    other = contents(write_scene(tmp_path / "other", Settings("object", **SMALL, seed=1)))
    assert other["train/r_0.png"] != contents(urn)["train/r_0.png"]


@pytest.mark.slow
def test_the_room_is_reproducible_too(room, tmp_path):
    assert contents(write_scene(tmp_path / "again", Settings(**SMALL))) == contents(room)


def test_a_folder_with_other_things_is_left_alone(dim, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        write_scene(tmp_path, Settings("object", **SMALL))
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_demo_scene_with_something_added_is_left_alone(dim, tmp_path):
    mine = tmp_path / "scene"
    write_scene(mine, Settings("object", 2, 16, 16, 1))
    (mine / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"notes\.txt"):
        write_scene(mine, Settings("object", **SMALL))
    assert (mine / "notes.txt").read_text() == "precious"


def test_a_demo_scene_is_replaced_by_another(dim, tmp_path):
    write_scene(tmp_path / "scene", Settings("object", 4, 16, 16, 1))
    write_scene(tmp_path / "scene", Settings("object", 2, 16, 16, 1))
    assert len(list((tmp_path / "scene" / "train").iterdir())) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["scene"]


def test_an_empty_working_folder_can_be_filled(dim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_scene(Path("."), Settings("object", 2, 16, 16, 1))
    assert (tmp_path / "demo.json").is_file()
    assert (tmp_path / "train" / "r_1.png").is_file()


def test_leftovers_of_a_killed_process_do_not_stand_in_the_way(dim, tmp_path):
    (tmp_path / "scene" / ".partial" / "train").mkdir(parents=True)
    write_scene(tmp_path / "scene", Settings("object", 2, 16, 16, 1))
    assert not (tmp_path / "scene" / ".partial").exists()


def test_an_earlier_scene_survives_a_failure(dim, tmp_path, monkeypatch):
    from nfc_splat.scenery import export

    scene = write_scene(tmp_path / "scene", Settings("object", 2, 16, 16, 1))
    before = contents(scene)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "draw", full)
    with pytest.raises(UserError, match="No space left"):
        write_scene(scene, Settings("object", 4, 16, 16, 1))
    assert contents(scene) == before


def test_a_failure_on_the_way_leaves_nothing_behind(dim, tmp_path, monkeypatch):
    from nfc_splat.scenery import export

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "draw", full)
    with pytest.raises(UserError, match="No space left"):
        write_scene(tmp_path / "scene", Settings("object", **SMALL))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"), [("views", 1), ("width", 8), ("height", 100_000), ("supersample", 0), ("seed", -1)]
)
def test_sizes_out_of_range_are_refused_by_name(tmp_path, name, value):
    with pytest.raises(UserError, match=f"--{name} {value}: expected"):
        write_scene(tmp_path / "scene", Settings(**{name: value}))


def test_the_command_ends_with_the_path_and_the_next_command(tmp_path, capsys):
    out = tmp_path / "a scene"
    command = [sys.executable, "-m", "nfc_splat.demo", str(out), "--kind", "object", "--views", "2"]
    command += ["--width", "16", "--height", "16", "--supersample", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout.splitlines()[-2]
    assert done.stdout.splitlines()[-1] == f"next: python -m nfc_splat.train '{out}'"
    (out / "mine").write_text("x")
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: demo.main(command[3:]))
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nonsense"], "--nonsense: unknown flag; python -m nfc_splat.demo --help lists them"),
        (["--widht", "20"], "--widht: unknown flag; did you mean --width?"),
        (["--views", "many"], "--views"),
        (
            ["--kind", "castle"],
            "invalid choice 'castle' for argument '--kind'. Expected one of ('room', 'object'); see",
        ),
        (["--width", "3"], "--width 3: expected 16 to 8192"),
        (["one", "two"], "'two': expected at most one OUT and flags"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: demo.main(words))
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert not list(tmp_path.iterdir())


def test_a_name_without_characters_is_shown_escaped():
    script = "from nfc_splat.errors import run_command; run_command(lambda: print('scene\\udcff'))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "utf-8"}, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"scene\\udcff\n", b"")


def test_a_wrong_value_is_one_line_in_a_terminal_without_frames():
    """As it is where there are characters to draw them, which the other wrong values see."""
    command = [sys.executable, "-m", "nfc_splat.demo", "--kind", "castle"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    repository = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: invalid choice 'castle' for argument '--kind'. Expected one of ('room', 'object'); "
        "see python -m nfc_splat.demo --help\n"
    )


def test_the_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        demo.main(["--help"])
    assert not caught.value.code
    text = capsys.readouterr().out
    for name in ("[OUT]", "--kind", "--views", "--width", "--height", "--supersample", "--seed"):
        assert name in text
