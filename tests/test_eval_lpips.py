"""LPIPS: absent, broken and unweighted torchvision are reasons, not failures; with it, torchmetrics' numbers."""

import importlib
import sys
import types

import pytest
import torch

from nfc_splat.eval.lpips import load_networks, weights_path


def _fake_torchvision(monkeypatch, **models):
    package = types.ModuleType("torchvision")
    package.models = types.ModuleType("torchvision.models")
    for name, value in models.items():
        setattr(package.models, name, value)
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", package.models)


def _weights(name):
    return types.SimpleNamespace(DEFAULT=types.SimpleNamespace(url=f"https://example.org/models/{name}.pth"))


def test_without_torchvision_the_reason_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    networks = load_networks(("alex", "vgg"), signed=True, device="cpu")
    assert networks.ready == {}
    assert "torchvision is not installed" in networks.missing["alex"]
    assert torch.__version__ in networks.missing["vgg"]


@pytest.mark.parametrize("error", [RuntimeError, OSError, AttributeError])
def test_a_torchvision_that_does_not_load_is_a_reason(monkeypatch, tmp_path, error):
    (tmp_path / "torchvision.py").write_text(
        f"raise {error.__name__}('operator torchvision::nms does not exist\\nand much more')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    reason = load_networks(("alex",), signed=True, device="cpu").missing["alex"]
    assert f"{error.__name__}: operator torchvision::nms does not exist)" in reason
    assert "much more" not in reason


def test_absent_weights_are_a_reason_and_nothing_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    _fake_torchvision(monkeypatch, AlexNet_Weights=_weights("alexnet-123"), VGG16_Weights=_weights("vgg16-456"))
    assert weights_path("alex") == tmp_path / "checkpoints" / "alexnet-123.pth"
    networks = load_networks(("alex", "vgg"), signed=False, device="cpu")
    assert networks.ready == {}
    assert str(tmp_path / "checkpoints" / "vgg16-456.pth") in networks.missing["vgg"]
    assert "--download-lpips" in networks.missing["alex"]


def test_weights_that_cannot_be_used_are_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    _fake_torchvision(monkeypatch, AlexNet_Weights=_weights("alexnet-123"))
    weights_path("alex").parent.mkdir()
    weights_path("alex").write_bytes(b"not weights")
    assert "building the alex network failed" in load_networks(("alex",), signed=True, device="cpu").missing["alex"]


@pytest.mark.slow
def test_numbers_equal_torchmetrics(monkeypatch, tmp_path):
    """With random backbone weights, so that nothing is downloaded."""
    try:
        models = importlib.import_module("torchvision.models")
    except Exception as error:
        pytest.skip(f"torchvision does not load here: {error}")
    functional = importlib.import_module("torchmetrics.functional.image.lpips")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    weights_path("alex").parent.mkdir()
    torch.save(models.alexnet(weights=None).state_dict(), weights_path("alex"))
    pred, target = torch.rand(2, 40, 48, 3)
    batch = [image.movedim(-1, 0)[None] for image in (pred, target)]
    for signed in (True, False):
        network = load_networks(("alex",), signed=signed, device="cpu").ready["alex"]
        expected = functional.learned_perceptual_image_patch_similarity(*batch, net_type="alex", normalize=signed)
        assert network(pred, target) == pytest.approx(expected.item(), abs=1e-5)
        assert network(pred, target) == network(pred, target) > 0
        assert network(target, target) == 0
    with pytest.raises(ValueError, match="20x31 is too small"):
        network(pred[:31, :20], target[:31, :20])
