"""Writes tests/golden/*.npz from PyTorch in float64: python -m tests.make_golden"""

import numpy as np

from tests import golden, oracle


def network(name):
    """The network, and the width of its features."""
    torch, resnet = oracle.load("torch"), oracle.load("torchvision").models.resnet
    if name in golden.TINY:
        net = golden.TINY[name]()[1]()
        size = golden.RUNS[name][0]
        return net, net.eval()(torch.zeros(1, 3, size, size)).shape[1]
    block = resnet.Bottleneck if golden.RESIDUAL[name] else resnet.BasicBlock
    net = resnet.ResNet(block, [1, 1, 1, 1])
    width, net.fc = net.fc.in_features, torch.nn.Identity()
    return net, width


def main():
    torch = oracle.load("torch")
    if torch is None or oracle.load("torchvision") is None:
        raise SystemExit("golden files are made with PyTorch and torchvision: install both")
    golden.FOLDER.mkdir(exist_ok=True)
    for name in golden.RUNS:
        model = oracle.two_heads(lambda name=name: network(name), dropout=0.0).double()
        names = {key: oracle.our_name(key) for key in model.state_dict()}
        shapes = {names[k]: tuple(v.shape) for k, v in model.state_dict().items()}
        made = golden.weights(shapes)
        model.load_state_dict({k: torch.from_numpy(made[n]) for k, n in names.items()})
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), **golden.ADAM)
        arrays, losses = {}, []
        for step in range(golden.STEPS):
            x, task, target = (torch.from_numpy(a) for a in golden.batch(name, step))
            optimizer.zero_grad()
            loss = oracle.masked_loss(model(x.double()), task, target)
            loss.backward()
            losses.append(loss.item())
            if step == 0:
                for key, value in oracle.gradients(model).items():
                    arrays[f"{key}:norm"] = np.float64(np.linalg.norm(value))
                    kept = value.ravel()[golden.positions(value.size)]
                    arrays[f"{key}:sample"] = kept.astype(np.float32)
            optimizer.step()
        arrays["losses"] = np.array(losses)
        path = golden.FOLDER / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path}: {path.stat().st_size} bytes, losses {losses[0]:.6f} .. {losses[-1]:.6f}")


if __name__ == "__main__":
    main()
