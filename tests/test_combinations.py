"""Whole trainings of drawn recipes (losses, weights, smoothing, groups, clipping, schedules, frozen
backbones, samplers, augmentation together) against the same recipe written out in PyTorch, float64.

Eps of Adam is large here: a step of float32 then differs from one of float64 by rounding alone and
not by the sign of a gradient that is next to nothing.
"""

import fnmatch
import itertools
import random

import numpy as np
import pytest

import mdmt
from mdmt import engine
from tests import oracle

torch = oracle.need("torch")
NET, SIZE = "shufflenet_v2_x0_5", 32
RANDOM = {"probability": 1.0, "shift": 0.1, "zoom": 0.2, "rotation": 20, "flip": True,
          "elastic_alpha": [20, 40], "elastic_sigma": 7, "gamma": 0.3, "contrast": 0.2,
          "brightness": 0.1, "invert": 0.3, "noise": 0.05}  # fmt: skip
STILL = {**RANDOM, "elastic_alpha": [0, 0], "invert": 0.0, "noise": 0.0}


def draw_tasks(r):
    """{task: its head, of a configuration}, {task: its class weights}."""
    heads, weights = {}, {}
    for name in "abc"[: r.choice([1, 2, 2, 3])]:
        loss = r.choice(["ce", "ce", "ordinal", "mse", "bce"])
        n = 1 if loss == "mse" else r.choice([2, 3, 4])
        heads[name] = {"classes": n, "hidden": r.choice([[], [8]]), "dropout": 0.0, "loss": loss}
        if loss == "ce" and r.random() < 0.5:
            heads[name]["smoothing"] = r.choice([0.1, 0.4])
        if loss != "mse" and r.random() < 0.6:
            fixed = [r.choice([0.25, 1.0, 3.0]) for _ in range(n)]
            weights[name] = r.choice(["balanced", fixed])
    return heads, weights


def draw_groups(r, heads):
    patterns = ["backbone", "heads", "norm", "bias", "*", "stage3.*", f"heads.{min(heads)}.*"]
    return {
        p: {k: r.choice([0, 0.1, 2.5]) for k in ("lr", "weight_decay") if r.random() < 0.7}
        for p in r.sample(patterns, r.choice([0, 1, 2, 3]))
    }


def draw(seed):
    """One recipe: what engine.Fit takes beside the network and its parts."""
    r = random.Random(seed)
    heads, class_weights = draw_tasks(r)
    members = len(heads) + r.choice([0, 0, 1])  # data sets; one more shares a task
    schedule = r.choice(["plateau", "cosine", "linear", "constant"])
    settings = {
        "epochs": 3, "warmup_epochs": r.choice([0, 1, 2]), "patience": r.choice([1, 5]),
        "batch_size": r.choice([6, 7, 8]), "lr": 2e-3, "schedule": schedule,
        "lr_warmup_epochs": r.choice([0, 1, 2]), "betas": r.choice([[0.9, 0.999], [0.8, 0.95]]),
        "eps": 1e-2, "weight_decay": r.choice([0.0, 1e-2]), "decoupled": r.random() < 0.5,
        "groups": draw_groups(r, heads), "clip_norm": r.choice([None, 0.5, 2.0]),
        "plateau": {"patience": 0, "factor": 0.5, "minimum": 1e-8},
        "augment": r.choice([None, STILL, RANDOM]), "lr_minimum": r.choice([0.0, 1e-4]),
    }  # fmt: skip
    mode = r.choice(["union", "balanced", "ratio"]) if members > 1 else "union"
    ratio = [r.choice([1, 2, 3]) for _ in range(members)] if mode == "ratio" else None
    fixed = {name: r.choice([0.5, 1, 3]) for name in heads}
    return heads, members, settings, {
        "sampler": {"mode": mode, "ratio": ratio, "drop_last": r.random() < 0.5,
                    "epoch": r.choice(["union", "longest", "shortest", 2])},
        "select": r.randrange(len(heads)),
        "task_weights": r.choice(["equal", "uncertainty", fixed]),
        "freeze": r.random() < 0.2,
        "max_steps": r.choice([None, None, None, 5]),
        "class_weights": class_weights,
    }  # fmt: skip


def parts_of(heads, members, seed):
    """Drawn data sets; part d has the task d, or, where there are more, the first one."""
    rng = np.random.default_rng(seed)
    found = []
    for d in range(members):
        head = list(heads.values())[d % len(heads)]
        m, n = 12 + 2 * d, head["classes"]
        if head["loss"] == "mse":
            labels = rng.normal(7, 3, m)
        elif head["loss"] == "bce":
            labels = np.where(rng.random((m, n)) < 0.15, np.nan, rng.integers(0, 2, (m, n)))
            labels[:, 0] = np.arange(m) % 2
        else:
            labels = np.minimum(np.arange(m) % 5, n - 1)
        images = rng.integers(0, 256, (m, SIZE, SIZE), np.uint8)
        train, val = np.arange(m)[m // 3 :], np.arange(m // 3)
        found.append(engine.Part(images, labels, d % len(heads), train, val))
    return found


# The same in PyTorch ---------------------------------------------------------------------------


def of_samples(loss, logits, target, weight, smoothing):
    """Each sample's loss (n,), by the definitions; weight as target."""
    functional = torch.nn.functional
    if loss == "mse":
        return (logits[:, 0] - target) ** 2 * weight
    if loss == "bce":
        known = ~torch.isnan(target)
        each = functional.binary_cross_entropy_with_logits(
            logits, torch.nan_to_num(target), reduction="none"
        )
        return (each * weight * known).sum(1) / known.sum(1).clamp(min=1)
    y = target.long()
    if loss == "ce":
        return (
            functional.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)
            * weight
        )
    below = torch.cumsum(torch.softmax(logits, 1), 1)[:, :-1]
    at_most = (y[:, None] <= torch.arange(logits.shape[1] - 1)).double()
    return -(at_most * below.log() + (1 - at_most) * (1 - below).log()).sum(1) * weight


class Theirs:
    """The recipe in float64. Batches are those of our sampler, pixels those of our augmentation."""

    def __init__(self, net, parts, heads, settings, more, seed, augment):
        self.net, self.parts, self.heads, self.more = net, parts, heads, more
        self.settings, self.seed, self.augment = settings, seed, augment
        self.targets, self.weights = self.labels()
        named = net.net.named_modules()
        self.norms = {name for name, m in named if isinstance(m, torch.nn.BatchNorm2d)}

    def labels(self):
        """Targets and weights of each part: numbers standardised, classes balanced by hand."""
        targets, weights = [], []
        for part in self.parts:
            name, head = list(self.heads.items())[part.task]
            mine = [p.labels[p.train] for p in self.parts if p.task == part.task]
            learnt = np.concatenate(mine)
            t = part.labels.astype(float)
            if head["loss"] == "mse":
                t = (t - learnt.mean()) / learnt.std()
            w, given = np.ones_like(t), self.more["class_weights"].get(name)
            for k in range(head["classes"]) if given is not None else ():
                if head["loss"] == "bce":
                    no, yes = (learnt[:, k] == 0).sum(), (learnt[:, k] == 1).sum()
                    balanced = no / yes if no and yes else 1.0
                    w[t[:, k] == 1, k] = balanced if given == "balanced" else given[k]
                else:
                    n = (learnt == k).sum()
                    balanced = len(learnt) / (len(np.unique(learnt)) * n) if n else 1.0
                    w[t == k] = balanced if given == "balanced" else given[k]
            targets.append(torch.tensor(t))
            weights.append(torch.tensor(w))
        return targets, weights

    def factors(self, key):
        """Factors of the learning rate and the weight decay of one parameter."""
        lr = decay = 1.0
        for pattern, given in self.settings["groups"].items():
            head, norm = key.startswith("heads."), key.rpartition(".")[0] in self.norms
            words = {"backbone": not head, "heads": head, "norm": norm}
            words["bias"] = key.endswith("bias")
            if words.get(pattern, fnmatch.fnmatchcase(key, pattern)):
                lr, decay = given.get("lr", lr), given.get("weight_decay", decay)
        return lr, decay

    def rate(self, epoch, length, losses):
        """The learning rate of an epoch; losses: the selecting one of each epoch before."""
        s = self.settings
        top, low, warm = s["lr"], s["lr_minimum"], min(s["lr_warmup_epochs"], self.epochs - 1)
        if epoch < warm:
            return top * (epoch + 1) / (warm + 1)
        u = (epoch - warm) / (length - warm)
        if s["schedule"] == "cosine":
            return low + (top - low) * (1 + np.cos(np.pi * u)) / 2
        if s["schedule"] == "linear":
            return low + (top - low) * (1 - u)
        weight = torch.nn.Parameter(torch.zeros(1))
        rule = torch.optim.SGD([weight], lr=top)
        if s["schedule"] == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(rule, factor=0.5, patience=0)
            for loss in losses[warm:]:
                plateau.step(loss)
        return rule.param_groups[0]["lr"]

    def images(self, d, rows, epoch=None):
        grey = self.parts[d].images[rows].astype(float)
        if epoch is not None and self.augment is not None:
            grey = mdmt.augment(
                self.parts[d].images[rows], np.full(len(rows), d), rows, epoch=epoch,
                seed=self.seed, dtype=np.float32, **self.augment,
            )  # fmt: skip
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (torch.tensor(np.asarray(grey, float))[:, None] / 255 - mean) / std

    def outputs(self, x):
        """Of a batch, which is normalised in as few and as equal parts as micro_batch takes."""
        most = self.settings.get("micro_batch") or len(x)
        given = [self.net(part) for part in torch.tensor_split(x, -(-len(x) // most))]
        return {name: torch.cat([some[name] for some in given]) for name in given[0]}

    def step(self, optimizer, dataset, index, epoch, task_weights):
        """One step: (sum of the losses and number of samples of each task, norm)."""
        optimizer.zero_grad()
        sums, total = np.zeros((len(self.heads), 2)), 0.0
        order = [(d, self.parts[d].train[i]) for d, i in zip(dataset, index)]
        x = torch.cat([self.images(d, np.array([row]), epoch) for d, row in order])
        out = self.outputs(x)
        for k, (name, head) in enumerate(self.heads.items()):
            mine = [j for j, (d, _) in enumerate(order) if self.parts[d].task == k]
            if not mine:
                continue
            picked = [order[j] for j in mine]
            target = torch.stack([self.targets[d][row] for d, row in picked])
            weight = torch.stack([self.weights[d][row] for d, row in picked])
            each = of_samples(
                head["loss"], out[name][mine], target, weight, head.get("smoothing", 0)
            )
            sums[k] = each.sum().item(), len(mine)
            total = total + task_weights.get(name, 1.0) * each.sum()
        (total / len(order)).backward()
        norm = None
        learnt = [p for p in self.net.parameters() if p.requires_grad]
        for p in learnt:  # of a task without a sample: the masked loss has a gradient of zeros
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        if self.settings["clip_norm"]:
            norm = torch.nn.utils.clip_grad_norm_(learnt, self.settings["clip_norm"]).item()
        optimizer.step()
        return sums, norm

    def validate(self, k):
        """Mean loss of a task over its validation parts, without smoothing."""
        self.net.eval()
        name, head = list(self.heads.items())[k]
        each = []
        with torch.no_grad():
            for d, part in enumerate(self.parts):
                if part.task == k:
                    out = self.net(self.images(d, part.val))[name]
                    target, weight = self.targets[d][part.val], self.weights[d][part.val]
                    each.append(of_samples(head["loss"], out, target, weight, 0))
        return torch.cat(each).mean().item()

    def task_weights(self, history):
        chosen = self.more["task_weights"]
        if chosen == "equal":
            return {}
        if chosen == "uncertainty":
            losses = {n: history[-1][f"loss_{n}"] for n in self.heads} if history else {}
            chosen = {n: 1 / max(v, 1e-3) for n, v in losses.items() if v is not None}
        all_ = {n: chosen.get(n, 1.0) for n in self.heads}
        mean = sum(all_.values()) / len(all_)
        return {n: w / mean for n, w in all_.items()}

    def train(self):
        """(history, {key: weights of the best epoch})."""
        s, more = self.settings, self.more
        sampler = mdmt.MixedBatchSampler([len(p.train) for p in self.parts], s["batch_size"],
                                         seed=self.seed, **more["sampler"])  # fmt: skip
        most, steps = more["max_steps"], len(sampler)
        self.epochs = s["epochs"] if most is None else -(-most // steps)
        length = self.epochs if most is None else most / steps
        if more["freeze"]:
            for p in self.net.net.parameters():
                p.requires_grad_(False)
        alike: dict[tuple, list] = {}
        for key, p in self.net.named_parameters():
            alike.setdefault(self.factors(oracle.our_name(key)), []).append(p)
        rows = [
            {"params": some, "lr": lr, "base": lr, "weight_decay": s["weight_decay"] * decay}
            for (lr, decay), some in alike.items()
        ]
        make = torch.optim.AdamW if s["decoupled"] else torch.optim.Adam
        optimizer = make(rows, betas=s["betas"], eps=s["eps"])
        history, selecting, best, left, stale = [], [], None, most, 0
        warm = min(s["warmup_epochs"], self.epochs - 1)
        for epoch in range(self.epochs):
            rate = self.rate(epoch, length, selecting)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["base"]
            weights = self.task_weights(history)
            sampler.set_epoch(epoch)
            sums, norms = 0, []
            for dataset, index in sampler:
                if left == 0:
                    break
                left = None if left is None else left - 1
                self.net.train()
                self.net.net.train(not more["freeze"])
                one, norm = self.step(optimizer, dataset, index, epoch, weights)
                sums, norms = sums + one, [*norms, norm]
            row = {"lr": rate}
            for k, name in enumerate(self.heads):
                row[f"loss_{name}"] = sums[k, 0] / sums[k, 1] if sums[k, 1] else None
                row[f"val_loss_{name}"] = self.validate(k)
            if s["clip_norm"]:
                row["grad_norm"] = np.mean(norms)
            history.append(row | {f"weight_{n}": w for n, w in weights.items()})
            selecting.append(row[f"val_loss_{list(self.heads)[more['select']]}"])
            if epoch >= warm:
                stale += 1
                if selecting[-1] <= min(selecting[warm:]):
                    best, stale = oracle.state(self.net), 0
                if most is None and stale >= s["patience"]:
                    break
        return history, best


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(26))
def test_a_drawn_recipe_is_that_of_pytorch(seed, one_thread):
    heads, members, settings, more = draw(seed)
    if seed >= 21:
        settings |= {"batch_size": 13, "micro_batch": 7}
    torch.manual_seed(seed)
    net = oracle.two_heads(NET, heads={n: h["classes"] for n, h in heads.items()}, hidden=())
    for name, head in heads.items():  # hidden layers differ
        sizes = [1024, *head["hidden"], head["classes"]]
        layers = []
        for i, o in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(i, o), torch.nn.ReLU(), torch.nn.Identity()]
        net.heads[name] = torch.nn.Sequential(*layers[:-2])
    net = oracle.randomize(net, seed, smooth=True).double()
    model = mdmt.Model(NET, heads=heads, image_size=SIZE, seed=seed)
    model.load_state_dict({k: np.float32(v) if v.dtype != np.int64 else v
                           for k, v in oracle.state(net).items()})  # fmt: skip
    start = model.state_dict()
    with torch.no_grad():
        for key, value in net.named():
            value.copy_(torch.tensor(start[key]))
    parts = parts_of(heads, members, seed)
    sizes = [len(p.train) for p in parts]
    if any(len(index) < 6 for _, index in mdmt.MixedBatchSampler(
            sizes, settings["batch_size"], seed=seed, **more["sampler"])):  # fmt: skip
        # Over few images of 32 pixels, batch normalisations magnify rounding.
        more["sampler"]["drop_last"] = True
    run = engine.Fit(model, parts, list(heads), settings, seed=seed, **more)
    theirs = Theirs(net, parts, heads, settings, more, seed, run.options["augment"])
    theirs.mean, theirs.std = model.mean, model.std
    history, best = theirs.train()
    state = run.run()
    told = f"seed {seed}: {heads} {settings} {more}"
    assert len(state.history) == len(history), told
    for ours, other in zip(state.history, history):
        for key, value in other.items():
            assert ours[key] == pytest.approx(value, rel=1e-3, abs=1e-5), (key, told)
    for name, unit in run.units.items():  # back to the unit of training
        model.rescale_head(name, 1 / unit.deviation, -unit.mean / unit.deviation)
    found, norm = model.state_dict(), np.linalg.norm
    for key in model._learnt:
        moved = norm(best[key] - start[key])
        off = norm(found[key] - best[key])
        assert off <= 2e-2 * moved + 1e-6 * norm(best[key]) + 1e-7, (key, off, moved, told)


# The loss alone -------------------------------------------------------------------------------


def draw_batch(rng):
    """Arguments of mdmt.masked_loss: tasks of any losses, labels and weights here and there."""
    tasks, n = rng.integers(1, 5), int(rng.integers(1, 12))
    losses = [str(rng.choice(["ce", "bce", "mse", "ordinal"])) for _ in range(tasks)]
    outputs = [int(rng.integers(1 if k in ("bce", "mse") else 2, 6)) for k in losses]
    width = max(c if k in ("bce", "mse") else 1 for c, k in zip(outputs, losses))
    task, target = rng.integers(-1, tasks, n), np.full((n, width), np.nan, np.float32)
    for i in np.flatnonzero(task >= 0):
        k, c = losses[task[i]], outputs[task[i]]
        drawn = {"mse": rng.normal(size=c), "bce": rng.integers(0, 2, c)}
        target[i, : c if k in drawn else 1] = drawn.get(k, rng.integers(0, c))
        if rng.random() < 0.25:
            target[i, rng.integers(0, width)] = np.nan
    shape = [None, (n,), (n, width)][rng.integers(3)]
    return {
        "logits": [np.float32(rng.normal(size=(n, c)) * rng.choice([1, 5, 20])) for c in outputs],
        "task": task,
        "target": target,
        "reduction": str(rng.choice(["mean", "per_task_mean", "sum"])),
        "weights": rng.choice([0, 0.3, 1, 2.5], tasks).tolist(),
        "losses": losses,
        "sample_weight": None if shape is None else rng.choice([0, 0.5, 1, 3], shape),
        "smoothing": [float(rng.choice([0, 0.1, 0.5])) if k == "ce" else 0.0 for k in losses],
    }


def of_sample(loss, z, y, w, smoothing):
    """The loss of logits z (C,) of one sample, or None where it has no label; y, w: its row."""
    c = len(z)
    y, w = torch.tensor(y).double(), torch.tensor(w).double()
    if loss == "bce":
        known = ~torch.isnan(y[:c])
        each = torch.nn.functional.binary_cross_entropy_with_logits
        some = each(z[known], y[:c][known], weight=w[:c][known], reduction="sum")
        return some / known.sum() if known.any() else None
    if torch.isnan(y[: c if loss == "mse" else 1]).any():
        return None
    if loss == "mse":
        return ((z - y[:c]) ** 2 * w[:c]).mean()
    if loss == "ordinal":  # by logarithms of both sides: log(1 - F) loses digits
        p, k = torch.log_softmax(z, 0), int(y[0])
        return -w[0] * sum(torch.logsumexp(p[: j + 1] if k <= j else p[j + 1 :], 0)
                           for j in range(c - 1))  # fmt: skip
    return w[0] * torch.nn.functional.cross_entropy(z, y[0].long(), label_smoothing=smoothing)


@pytest.mark.oracle
def test_the_loss_of_drawn_batches_is_that_of_pytorch(one_thread):
    for seed in range(150):
        given = draw_batch(np.random.default_rng(seed))
        loss, gradients, per_task = mdmt.masked_loss(**given)
        logits = [torch.tensor(z).double().requires_grad_() for z in given["logits"]]
        each: list = [[] for _ in logits]
        weight = given["sample_weight"]
        weight = np.ones_like(given["target"]) if weight is None else np.float32(weight)
        weight = np.broadcast_to(weight.reshape(len(weight), -1), given["target"].shape)
        for i in np.flatnonzero(given["task"] >= 0):
            k = given["task"][i]
            one = of_sample(given["losses"][k], logits[k][i], given["target"][i], weight[i],
                            given["smoothing"][k])  # fmt: skip
            each[k] += [] if one is None else [one]
        sums = [sum(some, 0 * z.sum()) for some, z in zip(each, logits)]
        labelled = sum(map(len, each))
        counts = {"sum": [1] * len(each), "mean": [max(labelled, 1)] * len(each),
                  "per_task_mean": [max(len(some), 1) for some in each]}  # fmt: skip
        share = counts[given["reduction"]]
        total = sum(w * t / n for w, t, n in zip(given["weights"], sums, share))
        total.backward()
        assert loss == pytest.approx(total.item(), rel=1e-5, abs=1e-5), seed
        assert per_task[:, 1].tolist() == [len(some) for some in each], seed
        np.testing.assert_allclose(per_task[:, 0], [t.item() for t in sums], 1e-5, 1e-5)
        for found, z in zip(gradients, logits):
            most = 2e-6 * max(1.0, float(z.grad.abs().max()))
            np.testing.assert_allclose(found, z.grad, 2e-5, most, err_msg=str(seed))
