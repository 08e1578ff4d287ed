"""Writing files that a crash cannot spoil, and reading files that nobody vouches for."""

import pytest

from nfc_splat.errors import UserError
from nfc_splat.files import atomic_path, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "new" / "figures.json"
    write_json(path, {"psnr": 30.0})
    with pytest.raises(ZeroDivisionError):
        _write_half(path)
    assert read_json(path) == {"psnr": 30.0}
    assert [entry.name for entry in path.parent.iterdir()] == ["figures.json"]


def _write_half(path):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*taken/mesh.json: .*another --out"):
        write_json(tmp_path / "taken" / "mesh.json", {})


@pytest.mark.parametrize(
    ("text", "said"), [("{", "JSON"), ('{"a": 1, "a": 2}', "a"), ("[NaN]", "NaN"), ("[" * 40 + "]" * 40, "32")]
)
def test_json_that_is_none_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
