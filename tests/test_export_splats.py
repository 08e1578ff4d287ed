"""Gaussians as files: `.splat` and `.spz` decoded by hand and by open3d, and the command on runs of both kinds."""

import dataclasses
import gzip
import math
import struct

import numpy as np
import pytest
import torch
from moving_toys import moving_config, write_moving_scene
from splat_toys import random_tensors

from nfc_splat.errors import UserError
from nfc_splat.export import splats as door
from nfc_splat.export.splat_formats import write_splat, write_spz
from nfc_splat.fields.splat_file import Splats, read_splats, write_splats
from nfc_splat.open3d_loader import load_open3d
from nfc_splat.train import train
from nfc_splat.training.config import default_config, resolve
from nfc_splat.training.load import load_run

SH_C0 = 0.28209479177387814
TURN = np.array([1, -1, -1])  # from x right, y down, z forwards to x right, y up, z backwards


def some_splats(count=50, degree=3, **changes):
    tensors = random_tensors(count, degree)
    tensors["opacities"] = torch.randn(count)
    return Splats(**(tensors | changes))


def unit(quats) -> np.ndarray:
    """Unit quaternions with a positive first component that is not 0, so that equal rotations are equal."""
    quats = np.asarray(quats, np.float64)
    quats = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    return quats * np.where(quats[:, :1] < 0, -1, 1)


def rotations(quats) -> np.ndarray:
    w, x, y, z = unit(quats).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def harmonics(directions: np.ndarray) -> np.ndarray:
    """[N, 15] the real harmonics of degree 1 to 3 up to their factors, in 3DGS's order, out of their polynomials."""
    x, y, z = directions.T
    xx, yy, zz = x * x, y * y, z * z
    bands = [y, z, x, x * y, y * z, 2 * zz - xx - yy, x * z, xx - yy, y * (3 * xx - yy), x * y * z]
    bands += [y * (4 * zz - xx - yy), z * (2 * zz - 3 * xx - 3 * yy), x * (4 * zz - xx - yy), z * (xx - yy)]
    return np.stack([*bands, x * (xx - 3 * yy)], 1)


# .spz


def decode_spz(path):
    """A reader from the format's description, component by component."""
    content = gzip.decompress(path.read_bytes())
    magic, version, count, degree, bits, flags, reserved = struct.unpack_from("<IIIBBBB", content)
    assert (magic, version, reserved) == (0x5053474E, 3, 0)
    place = 16

    def take(length):
        nonlocal place
        place += length
        return content[place - length : place]

    raw = take(9 * count)
    fixed = [int.from_bytes(raw[i : i + 3], "little", signed=True) for i in range(0, len(raw), 3)]
    opacities = np.frombuffer(take(count), "u1") / 255
    colors = (np.frombuffer(take(3 * count), "u1").reshape(-1, 3) / 255 - 0.5) / 0.15
    scales = np.frombuffer(take(3 * count), "u1").reshape(-1, 3) / 16 - 10
    quats = []
    for word in struct.unpack(f"<{count}I", take(4 * count)):
        largest, quat = word >> 30, [0.0] * 4
        for component in reversed([i for i in range(4) if i != largest]):
            quat[component] = (word & 511) / 511 * math.sqrt(0.5) * (-1 if word & 512 else 1)
            word >>= 10
        quat[largest] = math.sqrt(max(0, 1 - sum(value * value for value in quat)))
        quats.append([quat[3], *quat[:3]])  # stored as xyzw
    rest = (np.frombuffer(take(count * 3 * ((degree + 1) ** 2 - 1)), "u1").reshape(count, -1, 3) - 128.0) / 128
    assert place == len(content)
    means = np.array(fixed).reshape(-1, 3) / 2.0**bits
    return means, opacities, colors, scales, np.array(quats), rest, flags


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spz_holds_the_gaussians_turned_half_around_x(tmp_path, degree):
    splats = some_splats(degree=degree)
    step = write_spz(tmp_path / "a.spz", splats)
    means, opacities, colors, scales, quats, rest, flags = decode_spz(tmp_path / "a.spz")
    assert flags == 0
    assert step <= 2.0**-12
    np.testing.assert_allclose(means * TURN, splats.means, atol=step)
    np.testing.assert_allclose(opacities, splats.opacities.sigmoid(), atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(colors, splats.sh0[:, 0].clamp(-0.5 / 0.15, 0.5 / 0.15), atol=0.5 / 255 / 0.15 + 1e-6)
    np.testing.assert_allclose(scales, splats.scales, atol=1 / 32 + 1e-6)
    # A turn by T takes the rotation R to T R T.
    turn = np.diag(TURN)
    np.testing.assert_allclose(turn @ rotations(quats) @ turn, rotations(splats.quats), atol=8e-3)
    # A colour seen from a direction is the same, seen from the direction turned.
    directions = torch.nn.functional.normalize(torch.randn(40, 3), dim=1).numpy()
    count = rest.shape[1]
    found = np.einsum("dk,nkc->dnc", harmonics(directions * TURN)[:, :count], rest)
    expected = np.einsum("dk,nkc->dnc", harmonics(directions)[:, :count], splats.shN.numpy())
    bound = np.abs(harmonics(directions)[:, :count]) @ np.where(np.arange(count) < 3, 4 / 128, 8 / 128)
    assert (np.abs(found - expected) <= bound[:, None, None] + 1e-6).all()


def test_open3d_reads_the_same_spz(tmp_path):
    open3d = load_open3d()
    splats = some_splats()
    write_spz(tmp_path / "a.spz", splats)
    means, opacities, colors, scales, quats, rest, _ = decode_spz(tmp_path / "a.spz")
    cloud = open3d.t.io.read_point_cloud(str(tmp_path / "a.spz"))
    read = {name: cloud.point[name].numpy() for name in cloud.point}
    np.testing.assert_allclose(read["positions"], means, atol=1e-6)
    np.testing.assert_allclose(read["f_dc"], colors, atol=1e-5)
    np.testing.assert_allclose(
        read["scale"], np.exp(scales), rtol=1e-5
    )  # open3d applies the activation, to scales only
    np.testing.assert_allclose(read["opacity"][:, 0], np.log(opacities / (1 - opacities)), atol=1e-4)
    np.testing.assert_allclose(rotations(read["rot"]), rotations(quats), atol=1e-4)
    np.testing.assert_allclose(read["f_rest"], rest, atol=1e-6)


def test_spz_says_what_was_trained_antialiased_and_is_the_same_every_time(tmp_path):
    splats = dataclasses.replace(some_splats(), antialiased=True)
    write_spz(tmp_path / "a.spz", splats)
    write_spz(tmp_path / "b.spz", splats)
    assert decode_spz(tmp_path / "a.spz")[-1] == 1
    assert (tmp_path / "a.spz").read_bytes() == (tmp_path / "b.spz").read_bytes()


def test_spz_keeps_what_is_far_away_more_coarsely_and_refuses_what_it_cannot_hold(tmp_path):
    splats = some_splats()
    splats.means[3] = torch.tensor([5000.0, -7000.3, 12.0])
    step = write_spz(tmp_path / "a.spz", splats)
    assert step == 2.0**-10
    np.testing.assert_allclose(decode_spz(tmp_path / "a.spz")[0] * TURN, splats.means, atol=step / 2 + 1e-6)
    splats.means[3, 1] = 1e7
    with pytest.raises(UserError, match="1e\\+07 units away"):
        write_spz(tmp_path / "b.spz", splats)
    assert not (tmp_path / "b.spz").exists()


# .splat


def test_splat_holds_32_bytes_a_gaussian_the_weightiest_first(tmp_path):
    splats = some_splats()
    write_splat(tmp_path / "a.splat", splats)
    content = (tmp_path / "a.splat").read_bytes()
    assert len(content) == 32 * 50
    weight = splats.scales.sum(1).exp() * splats.opacities.sigmoid()
    order = weight.argsort(descending=True)
    for row, index in zip(struct.iter_unpack("<3f3f4B4B", content), order, strict=True):
        assert row[:3] == pytest.approx(splats.means[index].tolist(), rel=1e-6)
        assert row[3:6] == pytest.approx(splats.scales[index].exp().tolist(), rel=1e-6)
        color = [*(0.5 + SH_C0 * splats.sh0[index, 0]).clamp(0, 1).tolist(), float(splats.opacities[index].sigmoid())]
        assert np.abs(np.array(row[6:10]) - 255 * np.array(color)).max() <= 0.5 + 1e-4
        stored = (np.array(row[10:]) - 128) / 128
        quat = torch.nn.functional.normalize(splats.quats[index], dim=0).numpy()
        assert np.abs(stored - quat).max() <= 1 / 128


def test_open3d_reads_the_same_splat(tmp_path):
    open3d = load_open3d()
    splats = some_splats()
    write_splat(tmp_path / "a.splat", splats)
    cloud = open3d.t.io.read_point_cloud(str(tmp_path / "a.splat"))
    order = (splats.scales.double().sum(1) + splats.opacities.double().sigmoid().log()).argsort(descending=True)
    np.testing.assert_allclose(cloud.point["positions"].numpy(), splats.means[order], rtol=1e-6)
    np.testing.assert_allclose(cloud.point["scale"].numpy(), splats.scales[order].exp(), rtol=1e-5)
    np.testing.assert_allclose(rotations(cloud.point["rot"].numpy()), rotations(splats.quats[order]), atol=0.03)


# What is left out


@pytest.mark.parametrize("ending", door.FORMATS)
def test_gaussians_that_are_not_finite_are_left_out_of_every_format(tmp_path, ending):
    splats = some_splats(8)
    splats.means[0, 1], splats.opacities[2], splats.shN[4, 3, 2], splats.scales[5, 0] = (
        math.nan,
        math.inf,
        math.nan,
        200,
    )
    splats.quats[6] = 0
    dropped, _ = door.write(tmp_path / f"a{ending}", splats)
    assert dropped == 5
    count = {
        ".ply": lambda path: len(read_splats(path)[0].means),
        ".splat": lambda path: path.stat().st_size / 32,
        ".spz": lambda path: len(decode_spz(path)[0]),
    }[ending](tmp_path / f"a{ending}")
    assert count == 3
    splats.means[:] = math.nan
    with pytest.raises(UserError, match="none of 8 Gaussians is finite"):
        door.write(tmp_path / f"b{ending}", splats)


# The command


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """A run of 4dgs of a few steps."""
    folder = tmp_path_factory.mktemp("splats")
    scene = write_moving_scene(folder / "disc", views=4)
    config = default_config(scene, method="4dgs", preset="quick", device="cpu")
    model = moving_config(steps=6, coarse_steps=2, lr_deformation=0.05, lr_planes=0.5)
    config = dataclasses.replace(config, out=folder / "run", threads=1, quiet=True, model=model)
    train(resolve(config))
    return folder / "run"


@pytest.fixture
def static(moving, tmp_path):
    """Gaussians of another tool, and a scene to name."""
    write_splats(tmp_path / "other.ply", some_splats(degree=2))
    return [str(tmp_path / "other.ply"), "--scene", str(moving.parent / "disc")]


def test_a_moment_of_a_run_that_moves(moving, tmp_path, capsys):
    model = load_run(moving).model
    for time in (None, 0.75):
        words = [] if time is None else ["--time", str(time)]
        assert door.main([str(moving), "--out", str(tmp_path / f"{time}.ply"), *words]) == 0
        found, _ = read_splats(tmp_path / f"{time}.ply")
        with torch.no_grad():
            expected = model.splats_at(time or 0.0)
        for name in ("means", "scales", "opacities", "sh0", "shN"):
            torch.testing.assert_close(getattr(found, name), expected[name])
        np.testing.assert_allclose(rotations(found.quats), rotations(expected["quats"]), atol=1e-5)
    assert "degree 3" in capsys.readouterr().out
    assert (tmp_path / "None.ply").read_bytes() != (tmp_path / "0.75.ply").read_bytes()


def test_a_file_per_moment(moving, tmp_path, capsys):
    out = tmp_path / "disc.splat"
    out.write_text("the file of one moment is not in the way")
    assert door.main([str(moving), "--frames", "4", "--out", str(out)]) == 0
    assert sorted(path.name for path in (tmp_path / "disc-frames").iterdir()) == [f"{i:05d}.splat" for i in range(4)]
    assert "4 moments from 0 to 1" in capsys.readouterr().out
    assert door.main([str(moving), "--time", "1", "--out", str(tmp_path / "last.splat")]) == 0
    assert (tmp_path / "disc-frames" / "00003.splat").read_bytes() == (tmp_path / "last.splat").read_bytes()
    with pytest.raises(UserError, match="disc-frames is not empty: pass --overwrite"):
        door.main([str(moving), "--frames", "2", "--out", str(out)])
    assert door.main([str(moving), "--frames", "2", "--out", str(out), "--overwrite"]) == 0
    assert len(list((tmp_path / "disc-frames").iterdir())) == 2


def test_degrees_are_cut_and_the_default_lies_in_the_run(static, tmp_path):
    assert door.main([*static, "--sh-degree", "1"]) == 0
    found, _ = read_splats(tmp_path / "other" / "exported" / "splats.ply")
    expected, _ = read_splats(tmp_path / "other.ply")
    torch.testing.assert_close(found.shN, expected.shN[:, :3])
    torch.testing.assert_close(found.means, expected.means)
    with pytest.raises(UserError, match=r"splats\.ply exists: pass --overwrite"):
        door.main(static)


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["--out", "a.obj"], "expected a name that ends with .ply, .splat, .spz"),
        (["--time", "1.5"], "--time 1.5: expected 0 to 1"),
        (["--frames", "1"], "--frames 1: expected 2 to 99999"),
        (["--frames", "3", "--time", "0"], "--time and --frames"),
        (["--time", "0.5"], "--time: 3dgs does not model motion"),
        (["--frames", "3"], "--frames: 3dgs does not model motion"),
        (["--checkpoint", "3"], "is a file, not a run"),
    ],
)
def test_refusals(static, tmp_path, words, needle):
    with pytest.raises(UserError) as caught:
        door.main([*static, *words])
    assert needle in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "other").exists()  # where it would have gone


def test_a_file_of_gaussians_needs_a_scene(static):
    with pytest.raises(UserError, match="name the scene whose views to draw with --scene"):
        door.main(static[:1])
