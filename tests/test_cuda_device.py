"""Which device a model runs on, and what is said where it cannot; a model on the backend that runs
on the processor (tests/cudahost.py)."""

import subprocess
import sys

import numpy as np
import pytest

import mdmt
from mdmt import _core, config, nets, run, system
from mdmt.errors import BadConfig
from mdmt.nets.builder import Builder
from mdmt.runner import estimate
from tests import cudahost


@pytest.fixture
def emulated(monkeypatch):
    """mdmt._cuda is the build that runs its kernels on the processor."""
    module = cudahost.module()
    monkeypatch.setitem(sys.modules, "mdmt._cuda", module)
    return module


def without_gpu():
    count, text = system.cuda_devices()
    if count:
        pytest.skip(f"a GPU is here: {text}")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_no_gpu_is_one_sentence(name):
    without_gpu()
    with pytest.raises(NotImplementedError, match=f"the device '{name}' is not available here: "):
        mdmt.Model("resnet18", device=name)


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cuda:\u0663"])
def test_what_is_no_device(name):
    with pytest.raises(ValueError, match="is not a device; use cpu, cuda or cuda:i"):
        mdmt.Model("resnet18", device=name)


def test_show_config_tells_of_cuda(capsys):
    assert system.show_config()["CUDA"] == system.cuda_devices()[1]
    assert "CUDA" in capsys.readouterr().out


def test_import_needs_neither_driver_nor_module():
    for missing in ("", "sys.modules['mdmt._cuda'] = None; "):
        code = f"import sys; {missing}import mdmt; mdmt.show_config()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not missing or "not in this build" in done.stdout


def test_beyond_the_last_gpu(emulated):
    with pytest.raises(ValueError, match="there is no device 'cuda:1': the GPUs here are cuda:0"):
        mdmt.Model("resnet18", device="cuda:1")


@pytest.mark.parametrize(
    "name, slot, precision, chosen",
    [
        ("auto", "", "fp32", "cuda"),
        ("auto", "1", "bf16", "cuda:1"),
        ("auto", "1", "fp32-direct", "cpu"),
        ("cuda", "4", "fp32", "cuda:1"),
        ("cuda:0", "1", "tf32", "cuda:0"),
        ("cpu", "1", "fp32", "cpu"),
    ],
)
def test_which_device_a_training_takes(emulated, monkeypatch, name, slot, precision, chosen):
    """Of three GPUs, each slot of a runner has its own."""
    monkeypatch.setattr(system, "cuda_devices", lambda: (3, "three GPUs"))
    monkeypatch.setattr(system, "load_cudnn", lambda module: "cuDNN 9.10.2 (libcudnn.so.9)")
    monkeypatch.setenv("MDMT_SLOT", slot)
    assert system.choose_device(name, precision) == chosen


def test_without_gpu_or_cudnn_the_processor_is_taken(emulated, monkeypatch):
    monkeypatch.setattr(system, "load_cudnn", lambda module: "no cuDNN (not found)")
    assert system.choose_device("auto") == "cpu"
    monkeypatch.setattr(system, "cuda_devices", lambda: (0, "no driver"))
    assert system.choose_device("auto") == "cpu"
    with pytest.raises(NotImplementedError, match="'cuda' is not available here: no driver"):
        system.choose_device("cuda")


GPUS = {
    0: "no NVIDIA driver",
    1: "cuda:0 NVIDIA H100 80GB HBM3 (capability 9.0, 80 GiB)",
    2: "cuda:0 NVIDIA A (capability 8.0, 40 GiB), cuda:1 NVIDIA B (capability 9.0, 80 GiB)",
}
FOUND = "cuDNN 9.10.2 (libcudnn.so.9)"
MISSING = "no cuDNN (libcudnn.so.9: not found): slower convolutions of its own"


@pytest.mark.parametrize(
    "name, precision, count, cudnn, nodes, says",
    [
        ("auto", "fp32", 1, FOUND, 1, f"on {GPUS[1]}; {FOUND}"),
        ("auto", "fp32", 2, FOUND, 2, f"on {GPUS[2]}; {FOUND}"),
        ("cuda:0", "fp32", 2, FOUND, 2,
         f"on cuda:0 NVIDIA A (capability 8.0, 40 GiB); {FOUND}"),
        ("cuda:1", "bf16", 2, MISSING, 2,
         f"on cuda:1 NVIDIA B (capability 9.0, 80 GiB); {MISSING}"),
        ("auto", "fp32", 1, MISSING, 1,
         f"on the CPU, not on {GPUS[1]}: {MISSING}; pip install 'mdmt[cuda]' brings it, --device "
         "cuda does without"),
        ("auto", "fp32-direct", 1, FOUND, 1,
         f"on the CPU, not on {GPUS[1]}: precision fp32-direct is for the CPU; fp32 is for both"),
        ("auto", "fp32", 0, FOUND, 1,
         "on the CPU; the NVIDIA GPU here cannot be used: no NVIDIA driver"),
        ("auto", "fp32", 0, FOUND, 0, "on the CPU"),
        ("cpu", "fp32", 1, FOUND, 1, "on the CPU, as asked"),
    ],
)  # fmt: skip
def test_a_run_says_where_it_trains_and_why(
    emulated, monkeypatch, tmp_path, name, precision, count, cudnn, nodes, says
):
    """What reaches the introduction of `mdmt run`; nodes: of the system, for GPUs."""
    monkeypatch.setattr(system, "cuda_devices", lambda: (count, GPUS[count]))
    monkeypatch.setattr(system, "load_cudnn", lambda module: cudnn)
    monkeypatch.setattr(system.glob, "glob", lambda pattern: ["/dev/nvidia0"] * nodes)
    monkeypatch.delenv("MDMT_SLOT", raising=False)
    said = []

    def ready(name, out, values, quiet, memory, where, holding=()):
        said.append(where)
        raise BadConfig("enough")

    monkeypatch.setattr(run.apart, "call", ready)
    values = config.load("demo", [f"precision={precision}"])
    for where in ({}, {"dask": "tcp://there:8786"}):
        with pytest.raises(BadConfig, match="enough"):
            run.run(values, tmp_path / "out", device=name, quiet=True, **where)
    assert said == [says, f"on the machines of the workers, --device {name}"]


def test_another_machine_finds_its_device_itself(monkeypatch):
    monkeypatch.setattr(system, "cuda_devices", lambda: (0, "no driver"))
    assert [run.resolve_device(n, elsewhere=True) for n in ("auto", "cuda:7")] == ["auto", "cuda:7"]
    with pytest.raises(BadConfig, match="--device gpu: 'gpu' is not a device"):
        run.resolve_device("gpu", elsewhere=True)
    with pytest.raises(BadConfig, match=r"--device cuda:7: .* not available here"):
        run.resolve_device("cuda:7")


@pytest.mark.parametrize(
    "name, precision, gamma, count, says",
    [
        ("auto", "bf16", 0, 1, "cuda"),
        ("auto", "bf16", 1, 1, "cuda"),
        ("auto", "fp32-direct", 0, 1, "cpu"),
        ("auto", "tf32", 0, 0, "precision tf32 needs a GPU, but none can be used here: no driver"),
        ("cpu", "tf32", 0, 1, "precision tf32 needs a GPU, but the CPU was asked for"),
        ("cuda", "fp32-direct", 0, 1, "precision fp32-direct is for the CPU"),
    ],
)
def test_a_study_gets_the_precision_it_asks_for(
    emulated, monkeypatch, name, precision, gamma, count, says
):
    monkeypatch.setattr(system, "cuda_devices", lambda: (count, "a GPU" if count else "no driver"))
    monkeypatch.setattr(system, "load_cudnn", lambda module: "cuDNN 9.10.2 (libcudnn.so.9)")
    values = config.load("demo", [f"precision={precision}", f"train.augment.gamma={gamma}"])
    if says in ("cpu", "cuda"):
        assert run.resolve_device(name, values) == says
        assert estimate.measured_on(values, name) == {"device": says, "precision": precision}
    else:
        with pytest.raises(BadConfig, match=f"--device {name}: {says}"):
            run.resolve_device(name, values)


def test_what_needs_a_gpu_is_measured_without_one(tmp_path):
    without_gpu()
    values = config.load("demo", ["precision=tf32", "image_size=32", "folds=[0]",
                                  "configurations=[STL-tau1]"])  # fmt: skip
    study = run.prepare(values, None, True)
    text = estimate.estimate(values, study.jobs, tmp_path, 1)
    assert text.startswith("measured in fp32 on this processor, which does not have precision tf32")


def test_precisions_by_device(emulated):
    with pytest.raises(ValueError, match="precision on the CPU must be one of fp32, fp32-direct"):
        mdmt.Model("resnet18", precision="tf32")
    with pytest.raises(ValueError, match=r"precision on a GPU must be one of fp32, .*, not 'fp64'"):
        mdmt.Model("resnet18", device="cuda", precision="fp64")


def make(device, precision="fp32"):
    model = mdmt.Model("shufflenet_v2_x0_5", {"a": 2, "b": 3}, image_size=32, device=device,
                       precision=precision, seed=4)  # fmt: skip
    rng = np.random.default_rng(2)
    model.attach([
        {"images": rng.integers(0, 256, (6, 32, 32), np.uint8), "task": k,
         "target": np.arange(6, dtype=np.float32) % 2} for k in range(2)
    ])  # fmt: skip
    return model


def test_a_model_on_the_device_predicts_trains_and_moves(emulated, tmp_path):
    here, there = make("cpu"), make("cuda:0")
    dataset, index = np.array([0, 1, 1, 0, 0, 1]), np.array([0, 1, 2, 3, 4, 5])
    for name, value in here.predict(dataset, index).items():
        assert there.predict(dataset, index)[name] == pytest.approx(value, rel=1e-3, abs=1e-4)
    losses = [m.fit_step(dataset, index, lr=1e-3)[0] for m in (here, there)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    there.save(tmp_path / "model.safetensors")
    back = mdmt.Model.load(tmp_path / "model.safetensors")
    for name, value in there.state_dict().items():
        assert np.array_equal(back.state_dict()[name], value), name


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_a_model_comes_back_on_the_cpu(emulated, tmp_path, precision):
    """In its precision where the processor has it, else in fp32."""
    make("cuda", precision).save(tmp_path / "model.safetensors")
    here = precision if system.cpu_has(precision) else "fp32"
    assert mdmt.Model.load(tmp_path / "model.safetensors").precision == here
    assert mdmt.Model.load(tmp_path / "model.safetensors", device="cuda").precision == precision


def test_attached_images_are_copied_anew(emulated):
    model, (dataset, index) = make("cuda"), np.zeros((2, 2), np.int64)
    first = model.predict(dataset, index)["a"]
    images = model._sources[0]
    images[:] = 255 - images
    model.attach([{"images": images, "task": 0, "target": np.zeros(6, np.float32)}])
    assert not np.array_equal(model.predict(dataset, index)["a"], first)


def network(backbone, precision):
    """The backbone with one head; its weights are not set."""
    b = Builder(64, 64, 3)
    features = nets.family(backbone).build(b, backbone)
    b.graph.output(b.linear(features, "head", 2), "head")
    return _core.Network(b.graph, device=cudahost.device(precision))


@pytest.mark.parametrize("backbone", mdmt.backbones())
def test_every_backbone_has_a_plan(backbone):
    """Kernels for every op of the training step and the evaluation, and a plan of the memory: in
    bfloat16 the activations take about half of what they take in float32. Its head can learn alone,
    as the last weights of all."""
    step = {"batch": 8, "height": 64, "width": 64}
    training = step | {"training": 1, "gradients": 1, "target_width": 1, "reduction": "mean",
                       "tasks": [("head", "ce", 1.0)]}  # fmt: skip
    planned = {p: network(backbone, p).memory(training)["activations"] for p in ("fp32", "bf16")}
    assert 0.45 < planned["bf16"] / planned["fp32"] < 0.75
    net = network(backbone, "bf16")
    assert net.memory(step)["activations"] < planned["bf16"]
    assert net.memory(training | {"learns": "head."})["activations"] < planned["bf16"]
    names = [name for name, is_parameter in net.names() if is_parameter]
    assert names[-2:] == ["head.weight", "head.bias"]
