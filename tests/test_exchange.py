"""Weights between mdmt and torchvision or timm, for each backbone: in, out, and back again."""

import collections

import numpy as np
import pytest

import mdmt
from mdmt.weights import catalogue
from tests import oracle

pytestmark = pytest.mark.oracle
HEADS = {"t": {"classes": 3, "hidden": []}}
# One of each family and of each format. That every backbone's names and shapes are those of the
# original, and that its state loads there, tests/test_backbones.py proves for all.
BACKBONES = ("densenet121", "googlenet", "mobilenet_v2", "resnet18", "shufflenet_v2_x0_5")
BACKBONES += ("efficientnet_b0", "efficientnet_b1_pruned", "efficientnet_es", "efficientnet_lite0")
PREFIXES = ("module.", "backbone.", "_orig_mod.module.", "")


def original(name):
    """torchvision's or timm's network of that name with its classifier of 1,000 classes."""
    torch = oracle.need("torch")
    torch.manual_seed(0)
    if name.startswith("efficientnet"):
        return oracle.need("timm").create_model(name)
    # GoogLeNet's file has the auxiliary classifiers.
    more = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    return oracle.randomize(getattr(oracle.need("torchvision").models, name)(weights=None, **more))


def is_classifier(key):
    return key.startswith(("fc.", "classifier.", "aux1.", "aux2."))


def assert_taken(model, state):
    own = model.state_dict()
    wanted = {k: v.numpy() for k, v in state.items() if not is_classifier(k)}
    assert {k for k in own if not k.startswith("heads.")} == set(wanted)
    for key, value in wanted.items():
        np.testing.assert_array_equal(own[key], value, strict=True, err_msg=key)


def published(name, net, folder):
    """A file as the network's authors write it."""
    torch = oracle.need("torch")
    path = folder / "w.pth"
    # torchvision's older files are in the format before the archives.
    new = not name.startswith(("googlenet", "densenet", "shufflenet"))
    state = net.state_dict()
    if name.startswith("densenet"):
        old = [(k, k) for k in state]
        for layer in ("norm1", "norm2", "conv1", "conv2"):
            old = [(a, b.replace(f".{layer}.", f".{layer[:-1]}.{layer[-1]}.")) for a, b in old]
        state = collections.OrderedDict((b, state[a]) for a, b in old)
        assert any(".norm.1." in key for key in state)
    torch.save(state, path, _use_new_zipfile_serialization=new)
    return path


def read(name, path, **options):
    if name != "googlenet":
        return mdmt.Model(name, heads=HEADS, image_size=32, weights=path, **options)
    with pytest.warns(UserWarning, match=r"aux1 and aux2 are ignored.*no auxiliary classifiers"):
        return mdmt.Model(name, heads=HEADS, image_size=32, weights=path, **options)


@pytest.mark.parametrize("name", BACKBONES)
def test_files_as_published_are_read_and_go_back(name, tmp_path):
    torch, net = oracle.need("torch"), original(name)
    state = net.state_dict()
    model = read(name, published(name, net, tmp_path))
    assert_taken(model, state)
    assert model.unused == [k for k in state if is_classifier(k)]

    # Fine-tuned, saved, and loaded by the module that the weights came from.
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    model.train_step(x, np.zeros(2, np.int64), np.array([0, 2]), lr=1e-4)
    model.save(tmp_path / "m.safetensors")
    load_file = pytest.importorskip("safetensors.torch").load_file
    tuned = load_file(str(tmp_path / "m.safetensors"))
    tuned = {k: v for k, v in tuned.items() if not k.startswith("heads.")}
    changed = [k for k, v in tuned.items() if not torch.equal(v, state[k])]
    assert len(changed) > 0.9 * len(tuned)
    kept = {k: v for k, v in state.items() if is_classifier(k)}
    net.load_state_dict({**kept, **tuned}, strict=True)
    for key, value in net.state_dict().items():
        assert torch.equal(value, tuned.get(key, state[key])), key


@pytest.mark.parametrize("name", BACKBONES)
def test_checkpoints_and_safetensors_are_read(name, tmp_path):
    torch, net = oracle.need("torch"), original(name)
    state = net.state_dict()
    prefix = PREFIXES[BACKBONES.index(name) % len(PREFIXES)]
    wrapped = {prefix + k: v for k, v in state.items()}
    torch.save({"epoch": 1, "state_dict": wrapped, "best": 0.5}, tmp_path / "w.pth")
    assert_taken(read(name, tmp_path / "w.pth"), state)

    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({k: v.contiguous() for k, v in state.items()}, str(tmp_path / "w.safetensors"))
    model = read(name, tmp_path / "w.safetensors")
    assert_taken(model, state)
    ignored = model.load_state_dict(
        {k: v.numpy() for k, v in state.items()} | model.state_dict(), strict=True
    )
    assert ignored == [k for k in state if is_classifier(k)]


def test_a_backbone_beside_another_part(tmp_path):
    """Only the backbone's keys have the prefix."""
    torch, net = oracle.need("torch"), original("resnet18")
    state = {f"encoder_q.{k}": v for k, v in net.state_dict().items() if not is_classifier(k)}
    torch.save({**state, "head.weight": torch.ones(3, 512)}, tmp_path / "w.pth")
    model = read("resnet18", tmp_path / "w.pth")
    assert_taken(model, net.state_dict())
    assert model.unused == ["head.weight"]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "efficientnet_lite0"])
def test_the_classifier_can_become_a_head(name):
    torch, net = oracle.need("torch"), original(name).eval()
    model = mdmt.Model(name, {"imagenet": {"classes": 1000, "hidden": []}}, image_size=64)
    state = {k: v.numpy() for k, v in net.state_dict().items()}
    assert model.load_state_dict(state, classifier="imagenet") == []
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(x)).numpy()
    assert oracle.relative(model.forward(x)["imagenet"], wanted) < 1e-5


def test_a_classifier_that_is_not_there_or_has_no_place():
    deep = mdmt.Model("resnet18", HEADS | {"deep": 2}, image_size=32)
    state = deep.state_dict()
    for head, words in {
        "u": "no head 'u': choose among t, deep",
        "deep": "the head deep has hidden layers",
        "t": "no classifier",
    }.items():
        with pytest.raises(ValueError, match=words):
            deep.load_state_dict(state, classifier=head)
    other = {"fc.weight": np.ones((1000, 512)), "fc.bias": np.ones(1000)}
    with pytest.raises(ValueError, match=r"shape \(1000, 512\) in the weights and \(3, 512\)"):
        deep.load_state_dict(state | other, strict=False, classifier="t")


def test_every_catalogued_backbone_is_tested():
    assert set(mdmt.backbones()) == set(catalogue.SOURCES)
