"""`mdmt show` of networks: the layers' sums are the published counts, and the table can be read."""

import os
import re
import subprocess
import sys

import pytest

import mdmt
from mdmt import cli, summary

# With the original classifier of 1,000 classes, as torchvision 0.28 and timm 1.0.31 build them.
PUBLISHED = {
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1_pruned": 6_331_916,
    "efficientnet_es": 5_438_392,
    "efficientnet_es_pruned": 5_438_392,
    "efficientnet_lite0": 4_652_008,
    "googlenet": 6_624_904,
    "mobilenet_v2": 3_504_872,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "wide_resnet50_2": 68_883_240,
    "shufflenet_v2_x0_5": 1_366_792,
    "shufflenet_v2_x1_0": 2_278_604,
}


def shown(capsys, *arguments):
    assert cli.main(["show", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert cli.main(["show", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.strip().splitlines()) == 1
    return said.err


def table(text):
    """{layer or line number: parameters} of the rows between the two rules."""
    lines = text.splitlines()
    rules = [i for i, line in enumerate(lines) if line and set(line) == {"-"}]
    start = lines[2].index("parameters")
    end = start + len("parameters")
    found = {}
    for number in range(rules[0] + 1, rules[1]):
        cell = lines[number][start - 2 : end].strip()
        name = lines[number].split(" ")[0]
        found[name or number] = int(cell.replace(",", "") or 0)
    return found


@pytest.mark.parametrize("name", mdmt.backbones())
def test_every_backbone(name, capsys):
    text = shown(capsys, name, "--image-size", "64", "--batch", "2")
    assert f"({PUBLISHED[name]:,} parameters with the original classifier" in text
    assert max(map(len, text.splitlines())) <= 100
    numbers = [n for key, n in table(text).items() if not str(key).startswith("heads.")]
    backbone = int(re.search(r"backbone  ([\d,]+) parameters", text)[1].replace(",", ""))
    assert sum(numbers) == backbone
    assert set(PUBLISHED) == set(mdmt.backbones())


def test_numbers_of_a_row_are_right():
    network = summary.build("resnet18")
    first = network.layers[0]
    assert (first.name, first.kind, first.shape) == (
        "conv1", "conv 7x7 /2, norm, ReLU", (64, 112, 112)
    )  # fmt: skip
    assert first.parameters == 64 * 3 * 7 * 7 + 2 * 64
    assert first.macs == 64 * 3 * 7 * 7 * 112 * 112
    assert network.sums(heads=False) == (11_176_512, 1_813_561_344)


def test_is_what_the_model_says(capsys, tmp_path):
    heads = {"t": {"classes": 3, "hidden": [7]}}
    model = mdmt.Model("mobilenet_v2", heads=heads, image_size=(64, 96), channels=1)
    network = summary.build("mobilenet_v2", heads, (64, 96), 1)
    assert network.memory(4, True) == model.memory(4)
    assert network.memory(4, False) == model.memory(4, training=False)
    both = [network.sums(heads=which) for which in (True, False)]
    assert sum(macs for _, macs in both) == model.cost()["macs"]
    count = sum(
        v.size for k, v in model.state_dict().items() if not k.endswith(("mean", "var", "tracked"))
    )
    assert sum(parameters for parameters, _ in both) == count
    model.save(tmp_path / "m.safetensors")
    text = shown(capsys, str(tmp_path / "m.safetensors"))
    assert "mobilenet_v2, images of 64 x 96 pixels, 1 channel\n" in text
    assert "heads.t.1" in text and "heads     t (3): " in text
    assert "images of 32 x 32" in shown(
        capsys, str(tmp_path / "m.safetensors"), "--image-size", "32"
    )


def test_default_sizes_are_those_of_the_weights():
    assert summary.build("efficientnet_b1_pruned").size == (240, 240)
    assert summary.build("densenet121").size == (224, 224)


def test_what_cannot_be_shown_is_one_sentence(capsys, tmp_path):
    assert "did you mean 'resnet18'?" in refused(capsys, "resnet81")
    assert "too small" in refused(capsys, "densenet121", "--image-size", "20")
    for number in ("0", "-1", "90000000000"):
        assert "--batch goes with a network and must be 1" in refused(
            capsys, "resnet18", "--batch", number
        )
    assert "goes with a network" in refused(capsys, "demo", "--image-size", "64")
    assert "no weight file" in refused(capsys, str(tmp_path / "none.safetensors"))
    path = tmp_path / "w.safetensors"
    path.write_bytes((100 << 30).to_bytes(8, "little") + b"{}")
    assert "cut off" in refused(capsys, str(path))


def test_a_batch_beyond_all_memory(capsys):
    assert "too large" in refused(capsys, "resnet18", "--batch", str(1 << 24))


def test_a_reader_that_leaves_is_no_error():
    """As in `mdmt show resnet50 | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "mdmt", "show", "resnet50"]
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
