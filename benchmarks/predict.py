"""Prediction (the forward pass in evaluation mode) of ours against PyTorch and ONNX Runtime.

    python -m benchmarks.predict [--backbone resnet18] [--batch 16] [--image-size 224]
                                 [--threads 2] [--repeats 9] [--precision fp32|bf16] [--all]

All sides have the same weights and take the same images (float32, NCHW, normalised) to the logits
of two heads; how far the others' are from ours is printed and checked before anything is timed.
PyTorch runs under inference_mode: eager with NCHW and with channels-last memory, and channels-last
with every batch norm folded into its convolution (torch.fx, where it can follow the network); with
--precision bf16 by autocast. ONNX Runtime runs what `Model.export_onnx` writes, with its own
optimisations. Interleaved, one sample of each side in turn; the median of the ratios within the
rounds counts, against the best PyTorch and against ONNX Runtime. Sides that cannot be imported are
left out. --cpu-time counts the processor's time of one thread instead of the clock's, for machines
on which other work runs. Rows are added to benchmarks/results/predict.csv.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import machine

HEADS = {"prognosis": 2, "severity": 4}
TORCH = ("nchw", "channels-last", "folded")
# Largest distance of logits, in shares of the largest one: float32 of three libraries, bfloat16.
APART = {"fp32": 1e-4, "bf16": 0.1}


def images(options):
    """(N, 3, H, W) float32, as normalised radiographs are."""
    shape = (options.batch, 3, options.image_size, options.image_size)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def ours(options, name):
    """(predict, model): its running statistics those of some training, not zeros and ones."""
    import mdmt

    mdmt.set_num_threads(options.threads)
    model = mdmt.Model(
        name, heads=HEADS, image_size=options.image_size, precision=options.precision
    )
    x = images(options)
    task = np.arange(len(x)) % len(HEADS)
    for _ in range(3):
        model.train_step(x, task, np.zeros(len(x), np.int64), lr=1e-4)
    return lambda: model.forward(x), model


def pytorch(options, name, model):
    """{side: predict} of PyTorch with the model's weights."""
    from tests import oracle

    torch = oracle.load("torch")
    if torch is None or oracle.load("torchvision") is None:
        return {}
    torch.set_num_threads(options.threads)
    state = {k: torch.from_numpy(v) for k, v in model.state_dict().items()}
    x = torch.from_numpy(images(options))
    autocast = options.precision == "bf16"
    sides = {}
    for kind in TORCH:
        net = oracle.two_heads(name).eval()
        named = {oracle.our_name(k): k for k in net.state_dict()}
        net.load_state_dict({named[k]: v for k, v in state.items()}, strict=False)
        put = x
        if kind != "nchw":
            net = net.to(memory_format=torch.channels_last)
            put = x.contiguous(memory_format=torch.channels_last)
        if kind == "folded":
            from torch.fx.experimental.optimization import fuse

            try:
                net = fuse(net)
            except torch.fx.proxy.TraceError:  # padding computed from the image's size
                continue

        def run(net=net, put=put):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = net(put)
            return {k: v.float().numpy() for k, v in out.items()}

        sides[kind] = run
    return sides


def onnx(options, model):
    """{"onnx": predict} of ONNX Runtime on the exported model, in float32."""
    try:
        import onnxruntime
    except ImportError:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model.export_onnx(path)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            str(path), settings, providers=["CPUExecutionProvider"]
        )
    names = [output.name for output in session.get_outputs()]
    x = images(options)
    return {"onnx": lambda: dict(zip(names, session.run(names, {"image": x})))}


def compare(options, name, sides):
    """Largest distance of any side's logits from ours, in shares of the largest logit; SystemExit
    where it is more than rounding explains."""
    mine, worst = sides["ours"](), 0.0
    for side, run in sides.items():
        found = run()
        for task in HEADS:
            apart = float(np.abs(found[task] - mine[task]).max() / np.abs(mine[task]).max())
            worst = max(worst, apart)
            if not apart <= APART[options.precision]:
                raise SystemExit(f"{name}: {task} of {side} is {apart:.2g} from ours")
    return worst


def measure(options, name):
    """One row of the CSV."""
    predict, model = ours(options, name)
    sides = {"ours": predict} | pytorch(options, name, model)
    sides |= onnx(options, model) if options.precision == "fp32" else {}
    apart = compare(options, name, sides)
    seconds = {side: [] for side in sides}
    clock = time.process_time if options.cpu_time else time.perf_counter
    for _ in range(options.repeats):
        for side, run in sides.items():
            time.sleep(0.05)  # until the threads of the side before have stopped spinning
            start = clock()
            run()
            seconds[side].append(clock() - start)
    middle = {side: statistics.median(s) for side, s in seconds.items()}
    best = min((k for k in TORCH if k in sides), key=middle.get, default=None)
    row = {
        "cpu": machine.cpu_name(),
        "backbone": name,
        "precision": options.precision,
        "batch": options.batch,
        "image_size": options.image_size,
        "threads": options.threads,
        "clock": "cpu" if options.cpu_time else "wall",
        "repeats": options.repeats,
        "apart": f"{apart:.1e}",
        "ours_images_per_s": round(options.batch / middle["ours"], 1),
    }
    for side in (*TORCH, "onnx"):
        rate = round(options.batch / middle[side], 1) if side in sides else ""
        row[f"{side}_images_per_s"] = rate
    row["peer"] = best or ""
    for key, side in (("ratio", best), ("onnx_ratio", "onnx" if "onnx" in sides else None)):
        pairs = zip(seconds["ours"], seconds[side]) if side else ()
        ratios = sorted(theirs / mine for mine, theirs in pairs)
        row[key] = round(statistics.median(ratios), 3) if ratios else ""
        row[f"{key}_low"] = round(ratios[0], 3) if ratios else ""
        row[f"{key}_high"] = round(ratios[-1], 3) if ratios else ""
    return row


def show(row):
    """The row in words."""
    text = (
        f"{row['backbone']}, batch {row['batch']}, {row['image_size']} px, {row['threads']} "
        f"threads, {row['precision']}: {row['ours_images_per_s']} images/s"
    )
    for key, word in (("ratio", f"PyTorch ({row['peer']})"), ("onnx_ratio", "ONNX Runtime")):
        if row[key] != "":
            low, high = row[f"{key}_low"], row[f"{key}_high"]
            side = row["peer"] if key == "ratio" else "onnx"
            rate = row[f"{side}_images_per_s"]
            text += f"; {word} {rate}: {row[key]} times as fast ({low} to {high})"
    print(text + f"; logits {row['apart']} apart", flush=True)


def main():
    parser = machine.parser("predict", __doc__)
    parser.add_argument("--cpu-time", action="store_true", help="of one thread")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    options.threads = 1 if options.cpu_time else options.threads
    rows = []
    for name in machine.backbones(options):
        rows.append(measure(options, name))
        machine.append_csv(machine.RESULTS / "predict.csv", rows[-1:])
        show(rows[-1])
    for key, word in (("ratio", "PyTorch"), ("onnx_ratio", "ONNX Runtime")):
        values = [row[key] for row in rows if row[key] != ""]
        if len(values) > 1:
            mean = float(np.exp(np.mean(np.log(values))))
            print(f"geometric mean of {len(values)}: {mean:.2f} times as fast as {word}")


if __name__ == "__main__":
    main()
