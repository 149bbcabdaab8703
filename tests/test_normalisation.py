"""Input normalisation: that of the published weights, from the catalogue to a saved model."""

import numpy as np
import pytest

import mdmt
from mdmt.weights import catalogue
from tests import oracle

HEADS = {"t": 2}


def given(name):
    """(mean, std) that torchvision or timm apply before the first layer of the network."""
    if name.startswith("efficientnet"):
        settings = oracle.need("timm").get_pretrained_cfg(name)
        return settings.mean, settings.std
    transforms = (
        oracle.need("torchvision").models.get_model_weights(name).IMAGENET1K_V1.transforms()
    )
    mean, std = np.array(transforms.mean), np.array(transforms.std)
    if name == "googlenet":
        # The network maps the normalised values on, x (std / 0.5) + (mean - 0.5) / 0.5.
        net = oracle.need("torchvision").models.googlenet(
            weights=None, aux_logits=False, init_weights=False, transform_input=True
        )
        x = oracle.need("torch").tensor([[0.0] * 3, [1.0] * 3])[..., None, None]
        zero, one = net._transform_input(x).numpy()[:, :, 0, 0].astype(np.float64)
        slope = one - zero  # of the mapping; (v - mean) / std slope + zero = (v - m) / s
        return mean - std * zero / slope, std / slope
    return tuple(mean), tuple(std)


@pytest.mark.oracle
@pytest.mark.parametrize("name", sorted(catalogue.SOURCES))
def test_values_are_those_of_torchvision_and_timm(name):
    for ours, theirs in zip(catalogue.normalisation(name), given(name)):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_one_to_four_channels():
    mean, std = catalogue.normalisation("resnet18", 4)
    assert mean[:3] == catalogue.IMAGENET_MEAN and mean[3] == pytest.approx(0.449)
    assert std[:3] == catalogue.IMAGENET_STD and std[3] == pytest.approx(0.226)
    assert catalogue.normalisation("resnet18", 1) == ((0.485,), (0.229,))
    assert catalogue.normalisation("googlenet", 2) == ((0.5, 0.5), (0.5, 0.5))


# With ImageNet's mean and deviation, or with a half; of the first and of another family.
@pytest.mark.parametrize("name", ["resnet18", "googlenet", "efficientnet_b1_pruned"])
def test_resident_images_are_normalised_so(name):
    model = mdmt.Model(name, heads=HEADS, image_size=32)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32), np.uint8)
    model.attach([{"images": images, "task": 0, "target": np.zeros(2, np.float32)}])
    found = model.predict(np.zeros(2, np.int64), np.arange(2))
    mean, std = (np.array(v)[:, None, None] for v in catalogue.normalisation(name))
    x = ((images[:, None] / 255.0 - mean) / std).astype(np.float32)
    wanted = model.forward(x)
    for key in wanted:
        most = 1e-4 * np.abs(wanted[key]).max()
        np.testing.assert_allclose(found[key], wanted[key], rtol=0, atol=most)


def test_a_saved_model_keeps_its_own(tmp_path):
    model = mdmt.Model("resnet18", heads=HEADS, image_size=32)
    model.mean, model.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    model.save(tmp_path / "m.safetensors")
    again = mdmt.Model.load(tmp_path / "m.safetensors")
    assert (again.mean, again.std) == (model.mean, model.std)
    assert again.description() == model.description()


def test_a_model_saved_without_one_takes_that_of_its_backbone(tmp_path):
    import json

    from mdmt import _core

    model = mdmt.Model("resnet18", heads=HEADS, image_size=32)
    plain = {k: v for k, v in model.description().items() if k not in ("mean", "std")}
    path = str(tmp_path / "m.safetensors")
    _core.write_safetensors(path, model.state_dict(), {"mdmt": json.dumps(plain)})
    assert mdmt.Model.load(path).description() == model.description()


@pytest.mark.oracle
def test_default_sizes_are_those_of_the_weights():
    assert catalogue.default_size("efficientnet_b1_pruned") == 240
    for name in sorted(catalogue.SOURCES):
        if name.startswith("efficientnet"):
            wanted = oracle.need("timm").get_pretrained_cfg(name).input_size[1:]
        else:
            weights = oracle.need("torchvision").models.get_model_weights(name)
            wanted = weights.IMAGENET1K_V1.transforms().crop_size * 2
        assert list(wanted) == [catalogue.default_size(name)] * 2
    assert mdmt.Model("shufflenet_v2_x0_5", HEADS).image_size == (224, 224)
    assert mdmt.Model("efficientnet_b1_pruned", HEADS).image_size == (240, 240)
