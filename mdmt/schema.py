"""Every configuration key: its type, range, choices, default and meaning, in one place.

`SCHEMA` is what `config` checks a YAML file against; `describe()` prints it (`mdmt show keys`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SEED = 2**63 - 1  # the largest seed of a training


@dataclass(frozen=True)
class Key:
    """One key of the schema.

    kind: int, float, bool, text, list, map (fixed keys), table (free keys), or several joined
    by "|". `item` is the Key of a list's items or a table's values; `fields` a map's keys.
    partial: a map of which only the given keys are kept, to be laid over another one.
    """

    kind: str
    default: Any = None
    doc: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple = ()
    optional: bool = False
    required: bool = False
    nonempty: bool = False
    item: Key | None = None
    fields: dict = field(default_factory=dict)
    partial: bool = False


def _map(doc: str, optional: bool = False, **fields: Key) -> Key:
    return Key("map", None if optional else {}, doc, optional=optional, fields=fields)


COLUMNS = _map(
    "columns of the table",
    image=Key("text", "image", "image file name, with or without extension"),
    patient=Key("text", "patient", "patient id (text); splits never cut a patient", optional=True),
    label=Key(
        "text",
        "label",
        "class name, number, or the names of the findings with ; or | between them",
    ),
    findings=Key(
        "table",
        None,
        "finding -> its column of 1, 0 or nothing (not labelled; so is -1, uncertain), where they "
        "have columns of their own (default: those called like them, where there is no label)",
        optional=True,
        item=Key("text"),
    ),
    center=Key("text", None, "center (hospital), needed for loco", optional=True),
    test=Key(
        "text", None, "1 marks a fixed test set: it is the test part of every fold", optional=True
    ),
    targets=Key(
        "list", [], "further numbers that are kept with the cases (Cases.targets)", item=Key("text")
    ),
    second=Key(
        "text",
        None,
        "a second reader's label, for the report alone: how far people agree",
        optional=True,
    ),
    regions=Key("text", None, "six regional scores (Brixia), for the report alone", optional=True),
    second_regions=Key("text", None, "the second reader's regional scores", optional=True),
)

DATASET = _map(
    "one data set with the label of one task",
    name=Key("text", required=True, doc="name of the data set"),
    reader=Key(
        "text",
        "table",
        "table, or the layout of a published data set as downloaded",
        choices=("table", "aiforcovid", "brixia"),
    ),
    folder=Key("text", None, "folder of the data set, relative to data.root", optional=True),
    table=Key(
        "text",
        None,
        "CSV, TSV or XLSX file in that folder (brixia: metadata_global_v2.csv)",
        optional=True,
    ),
    images=Key(
        "text", None, "image folder in it (default: images; brixia: dicom_clean)", optional=True
    ),
    columns=COLUMNS,
    task=Key("text", required=True, doc="the task (a key of `tasks`) that its label belongs to"),
    delimiter=Key(
        "text",
        "auto",
        "auto, comma, semicolon or tab",
        choices=("auto", "comma", "semicolon", "tab"),
    ),
    keep=Key(
        "text",
        None,
        "text file with a header line whose first column names the images to use (default: all)",
        optional=True,
    ),
    leave_out=Key("list", [], "names of images that are not used", item=Key("text")),
    accept=Key(
        "list",
        [],
        "names of images whose lungs are right as found, although they are doubted",
        item=Key("text"),
    ),
    corrections=Key(
        "text",
        None,
        "table in the folder with the columns image and box: accept, whole, exclude, or left top "
        "right bottom in pixels of the image; overrides what the software found",
        optional=True,
    ),
    published=Key(
        "table|text",
        None,
        "folder of published fold files (with 5/ and loCo/), or {release: folder}: exactly these "
        "folds are used",
        optional=True,
        item=Key("text"),
    ),
    target=Key(
        "text",
        "global",
        "brixia: the score that the task's thresholds cut: all six regions, the right lung (A, B, "
        "C), the left lung (D, E, F) or one region",
        choices=("global", "right", "left", "A", "B", "C", "D", "E", "F"),
    ),
    consensus=Key(
        "text",
        "keep",
        "brixia: what happens to the 150 images that five radiologists scored; test: they are the "
        "test part of every fold",
        choices=("keep", "exclude", "only", "test"),
    ),
    groups=Key(
        "table",
        None,
        "brixia: manufacturer -> center (default: SIEMENS, AGFA and CARESTREAM, each by the "
        "first word of the name; others have no center)",
        optional=True,
        item=Key("text"),
    ),
)

HEAD = _map(
    "fully connected head on the pooled feature",
    hidden=Key(
        "list",
        [128, 32],
        "widths of the hidden layers; [] is one linear layer",
        item=Key("int", low=1),
    ),
    dropout=Key("float", 0.5, "dropout probability after each hidden layer", low=0, high=0.99),
    loss=Key(
        "text",
        "ce",
        "loss of the task, which says what kind of task it is: ce (cross-entropy) or ordinal "
        "(ranked score, for ordered classes), one class per image; mse, a number; bce, any of "
        "several findings",
        choices=("ce", "ordinal", "mse", "bce"),
    ),
    smoothing=Key(
        "float",
        0,
        "label smoothing, of the loss ce: the share of each training target that is spread evenly "
        "over all classes (0: off; validation takes the plain target)",
        low=0,
        high=0.99,
    ),
)

TASK = _map(
    "one task",
    classes=Key(
        "list",
        [],
        "class names, in order; with the loss bce the findings; with mse none, or those that "
        "thresholds make of the number",
        item=Key("text"),
    ),
    labels=Key(
        "table",
        None,
        "label in the table -> class or finding, where they differ; `No Finding` ignores one",
        optional=True,
        item=Key("text"),
    ),
    thresholds=Key(
        "list",
        None,
        "scores t1 < t2 < ...: class k is t_k <= score < t_k+1 "
        "(equation 4 of the paper: [5, 9, 14]); with the loss mse the number is learnt, and its "
        "classes are reported too",
        optional=True,
        item=Key("float"),
    ),
    positive=Key(
        "text", None, "positive class of a two-class task (default: the last one)", optional=True
    ),
    class_weights=Key(
        "table|text",
        "none",
        "weights of the classes in the loss, in training and in the validation that selects the "
        "epoch: none; balanced (n / (K n_k) on each fold's training part; with the loss bce "
        "negatives / positives, at most 100, for each finding's positives); or {class: weight}, of "
        "findings {finding: weight of a positive}, 1 where not named",
        item=Key("float", low=0, high=1e6),
    ),
    head=HEAD,
)

TRAIN = _map(
    "training",
    epochs=Key("int", 300, "most epochs", low=1),
    warmup_epochs=Key(
        "int",
        40,
        "epochs before a model may be selected and early stopping "
        "counts (not a learning-rate warm-up: that is lr_warmup_epochs); at most epochs - 1",
        low=0,
    ),
    patience=Key("int", 40, "epochs without improvement before stopping", low=1),
    batch_size=Key("int", 128, "samples per step", low=1),
    micro_batch=Key(
        "int",
        None,
        "samples computed at once: a larger batch is cut into as few and as equal parts as that "
        "takes, whose gradients are added up for one step, with the memory of one part; the loss "
        "stays the mean over the whole batch, batch normalisation sees a part (default: the whole "
        "batch at once)",
        low=1,
        optional=True,
    ),
    lr=Key("float", 0.001, "learning rate of Adam", low=0),
    schedule=Key(
        "text",
        "plateau",
        "how the learning rate goes on from lr: plateau (reduced when the validation loss stands "
        "still), cosine or linear (falls to lr_minimum over the epochs of the training, or over "
        "its steps where steps_of counts them) or constant",
        choices=("plateau", "cosine", "linear", "constant"),
    ),
    lr_minimum=Key(
        "float",
        0.0,
        "learning rate at the end of the training with schedule cosine or linear, never above lr",
        low=0,
    ),
    lr_warmup_epochs=Key(
        "int",
        0,
        "epochs at the start in which the learning rate rises to lr in equal steps, before the "
        "schedule begins (not the paper's warm-up of the selection: that is warmup_epochs); at "
        "most epochs - 1",
        low=0,
    ),
    betas=Key(
        "list", [0.9, 0.999], "Adam's beta1 and beta2", item=Key("float", low=0, high=0.999999)
    ),
    eps=Key("float", 1e-8, "Adam's epsilon", low=0),
    weight_decay=Key("float", 0.0001, "L2 term", low=0),
    decoupled=Key("bool", False, "decoupled weight decay instead of L2 in the gradient"),
    groups=Key(
        "table",
        {},
        "parameters with another learning rate or weight decay: {pattern: {lr: factor, "
        "weight_decay: factor}}; a pattern is backbone, heads, norm (batch normalisations), bias "
        "or a name with wildcards (layer4.*), the last one that names a parameter and gives a "
        "factor counts (default: all factors are 1)",
        item=Key(
            "map",
            {},
            "factors of a group",
            fields={
                "lr": Key("float", 1, "factor of the learning rate", low=0),
                "weight_decay": Key("float", 1, "factor of the weight decay", low=0),
            },
            partial=True,
        ),
    ),
    clip_norm=Key(
        "float",
        None,
        "largest L2 norm of the gradient of all parameters: a longer one is scaled to it "
        "(default: gradients are not clipped)",
        low=1e-12,
        optional=True,
    ),
    plateau=_map(
        "schedule plateau: learning rate reduced when the validation loss stands still",
        patience=Key("int", 15, "epochs", low=0),
        factor=Key("float", 0.65, "factor", low=0.01, high=1),
        minimum=Key("float", 1e-8, "smallest learning rate", low=0),
    ),
    augment=_map(
        "random changes of the training images, each with its probability",
        optional=True,
        probability=Key("float", 0.5, "probability of each", low=0, high=1),
        shift=Key("float", 0.1, "largest shift, share of the side", low=0, high=1),
        zoom=Key("float", 0.1, "zoom between 1 - zoom and 1 + zoom", low=0, high=0.9),
        flip=Key("bool", True, "mirror left and right"),
        rotation=Key("float", 10, "largest angle in degrees", low=0, high=180),
        elastic_alpha=Key(
            "list",
            [20, 40],
            "range of the elastic strength; [0, 0] is off",
            item=Key("float", low=0),
        ),
        elastic_sigma=Key(
            "float",
            7,
            "smoothness of the elastic field; both in pixels of an image of 256 pixels",
            low=0.1,
        ),
        gamma=Key("float", 0, "grey v in 0..1 becomes v ** exp(g), g both ways", low=0, high=3),
        contrast=Key("float", 0, "contrast factor 1 - contrast to 1 + contrast", low=0, high=1),
        brightness=Key("float", 0, "added to the grey in 0..1, both ways", low=0, high=1),
        invert=Key("float", 0, "probability of black and white exchanged", low=0, high=1),
        noise=Key("float", 0, "largest standard deviation of added noise", low=0, high=1),
    ),
    checkpoint_seconds=Key("float", 60, "seconds between checkpoints; 0: only when stopped", low=0),
    checkpoint_steps=Key("int", 0, "steps between checkpoints; 0: off", low=0),
)

SAMPLER = _map(
    "mixed batches",
    mode=Key("text", "union", "union, balanced or ratio", choices=("union", "balanced", "ratio")),
    ratio=Key(
        "list",
        None,
        "share of each data set, for mode ratio",
        optional=True,
        item=Key("float", low=0),
    ),
    epoch=Key("int|text", "union", "length of an epoch: union, longest, shortest or steps"),
    drop_last=Key("bool", False, "leave out a last batch that is not full"),
)


def _partial(full: Key, doc: str, **changed: Key) -> Key:
    """The keys of map `full` as an optional mapping of which any may be given."""
    fields = {}
    for name, key in full.fields.items():
        inner = key.kind == "map" and not key.optional
        fields[name] = _partial(key, key.doc) if inner else key
    return Key("map", None, doc, optional=True, fields={**fields, **changed}, partial=True)


PRECISION = Key(
    "text",
    "fp32",
    "arithmetic: bf16 (mixed precision) is for GPUs and for processors with AVX512-BF16, tf32 for "
    "GPUs, fp32-direct for the CPU",
    choices=("fp32", "fp32-direct", "tf32", "bf16"),
)
TASK_WEIGHTS = Key(
    "table|text",
    "equal",
    "equal, uncertainty (a task's loss counts by the inverse of its mean in the epoch before, the "
    "optimum of Kendall et al. 2018) or fixed: {task: weight}; scaled to a mean of 1",
    item=Key("float", low=0),
)

STAGE = _map(
    "one training of an experiment",
    tasks=Key(
        "list", required=True, doc="task names, or tau1, tau2, ...", item=Key("text"), nonempty=True
    ),
    init=Key(
        "int|list|text",
        "weights",
        "weights (the configured ones), the number of an earlier stage, or a list of two or more "
        "of them to average",
        item=Key("int", low=0),
    ),
    shares=Key(
        "list",
        None,
        "share of each averaged stage (default: mdmt.beta and 1 - mdmt.beta for two, equal ones "
        "for more)",
        optional=True,
        item=Key("float", low=0, high=1),
    ),
    heads=Key("text", "new", "heads at the start", choices=("new", "keep")),
    train=_partial(
        TRAIN,
        "keys of train that differ in this stage; epochs: 0 tests what the stage starts from",
        epochs=Key("int", 300, "most epochs; 0: no training", low=0),
    ),
    sampler=_partial(SAMPLER, "keys of sampler that differ in this stage"),
    task_weights=TASK_WEIGHTS,
    freeze=Key(
        "bool",
        False,
        "train the heads alone: the backbone and its running statistics stay as they are",
    ),
    steps_of=Key(
        "text",
        None,
        "train for exactly as many steps as all trainings behind this configuration had together; "
        "no early stopping",
        optional=True,
    ),
)

SCHEMA = _map(
    "configuration",
    name=Key("text", "run", "name of the study; names the default out folder"),
    data=_map(
        "data",
        root=Key(
            "text",
            None,
            "folder of the data; relative paths start at the working directory",
            optional=True,
        ),
        release=Key("text", "1", "name of the data release, copied into the results"),
        releases=Key(
            "list",
            None,
            "releases of a study over several of them (default: data.release alone)",
            optional=True,
            item=Key("text"),
            nonempty=True,
        ),
        datasets=Key("list", [], "the data sets", item=DATASET),
        synthetic=_map(
            "draw the demo's synthetic data instead of reading data.root",
            optional=True,
            patients=Key("int", 120, "patients per data set", low=10, high=100000),
            size=Key("int", 128, "side of the drawn images in pixels", low=32, high=2048),
            noise=Key(
                "float",
                1.0,
                "standard deviation of the noise in the prognosis, in units of severity classes",
                low=0,
                high=20,
            ),
            seed=Key("int", 0, "seed of the drawing", low=0),
        ),
        store=Key(
            "text",
            None,
            "folder of the preprocessed images (default: the user's cache)",
            optional=True,
        ),
        colour=Key(
            "bool",
            False,
            "keep the images in colour (RGB), for dermatoscopy, fundus photographs, histology; "
            "a grey image then has three equal channels. false: everything becomes grey",
        ),
        voi=Key("bool", True, "apply the window or lookup table that a DICOM file carries"),
        clip=Key(
            "list",
            [2, 98],
            "percentiles of the whole image that become black and white (null: its extremes)",
            optional=True,
            item=Key("float", low=0, high=100),
        ),
        crop=Key(
            "text",
            "whole",
            "what the network sees: the whole image, the box around the lungs, or the box with all "
            "but the lungs masked black",
            choices=("whole", "box", "masked"),
        ),
        border=Key(
            "float",
            0.05,
            "what is added on each side of the lungs' box, in shares of its width and height",
            low=0,
            high=1,
        ),
        square=Key(
            "text",
            "pad",
            "how image or box become square, never by stretching: a box takes more of the image; "
            "where that ends, black is padded, or the square is cropped to the image",
            choices=("pad", "crop"),
        ),
        minmax=Key("bool", False, "spread the values to the full range after resizing"),
        near_duplicates=Key(
            "text",
            "together",
            "pictures that show the same radiograph: together (they count as one patient, and are "
            "not trained on where another data set tests one) or report (found in the audit)",
            choices=("together", "report"),
        ),
        same_patients=Key(
            "bool",
            False,
            "equal patient ids in two data sets are the same person, who is then in the same part "
            "of both",
        ),
        on_bad_image=Key(
            "text",
            "error",
            "an image that is unreadable or shows no plausible lungs stops the run, or is excluded "
            "and listed",
            choices=("error", "exclude"),
        ),
    ),
    tasks=Key("table", {}, "the tasks: tau1 is the first, tau2 the second, ...", item=TASK),
    backbones=Key("list", ["resnet18"], "backbones", item=Key("text"), nonempty=True),
    configurations=Key(
        "list",
        ["STL-tau1", "STL-tau2", "FT", "MDMT"],
        "configurations to train; `controls` stands for STL-tau1-long, MDMT-plain and AVG, and "
        "MDMT-beta<number> is MDMT with that beta; FT-tau2 is FT the other way round",
        item=Key("text"),
        nonempty=True,
    ),
    experiments=Key(
        "table",
        {},
        "further configurations as lists of stages; the last stage is the one that is tested",
        item=Key("list", item=STAGE, nonempty=True),
    ),
    validation=Key(
        "list",
        ["cv"],
        "validation schemes: cv; nested (cv whose test parts each get cv.inner validation parts); "
        "loco (leave one center out, fold i of one data set with fold i mod n of the other, as in "
        "the paper); loco-all (every center of one with every center of the other); external is "
        "what `mdmt evaluate` writes",
        item=Key("text", choices=("cv", "loco", "loco-all", "nested", "external")),
        nonempty=True,
    ),
    cv=_map(
        "cross-validation",
        folds=Key("int", 5, "number of folds", low=2, high=100),
        validation=Key(
            "float", 0.2, "share of the training part kept for validation", low=0.01, high=0.9
        ),
        seed=Key("int", 0, "seed of the splits", low=0),
        centers=Key("bool", True, "balance the folds over centers, too, where patients suffice"),
        inner=Key("int", 5, "validation parts of each test part, with nested", low=2, high=100),
    ),
    folds=Key(
        "list",
        None,
        "fold numbers to run (default: all)",
        optional=True,
        item=Key("int", low=0),
        nonempty=True,
    ),
    image_size=Key("int", 224, "side of the network's input in pixels", low=32, high=4096),
    weights=Key(
        "table|text",
        "random",
        "random, imagenet, or a file or folder of weights; or one of these for each backbone: "
        "{backbone: weights}",
        item=Key("text"),
    ),
    seeds=Key(
        "list", [0], "seeds of the training", item=Key("int", low=0, high=SEED), nonempty=True
    ),
    train=TRAIN,
    sampler=SAMPLER,
    mdmt=_map(
        "the MDMT configuration",
        beta=Key("float", 0.5, "share of the STL-tau1 weights in the average", low=0, high=1),
        heads=Key(
            "text",
            "new",
            "heads at the start: new, or those of the STL models",
            choices=("new", "keep"),
        ),
        task_weights=TASK_WEIGHTS,
    ),
    cluster=_map(
        "what a SLURM job asks for, with --dask slurm and --emit-slurm",
        partition=Key("text", None, "partition (queue)", optional=True),
        account=Key("text", None, "account", optional=True),
        cores=Key("int", 4, "cores of a job, shared by its --workers trainings", low=1),
        memory=Key("text", "8GB", "memory of a job"),
        walltime=Key("text", "04:00:00", "longest time of a job"),
        jobs=Key("int", 4, "jobs at the same time", low=1),
        array=Key("int", 1000, "most tasks of one job array (MaxArraySize)", low=1),
        directives=Key(
            "list", [], "further options of sbatch, as --option=value", item=Key("text")
        ),
        setup=Key("list", [], "shell lines before mdmt starts", item=Key("text")),
    ),
    keep_weights=Key(
        "bool",
        True,
        "keep the weights of every training; false: delete them as soon as no other training of "
        "the study starts from them (the paper's study: 130 GB)",
    ),
    precision=PRECISION,
)

MASKS = _map(
    "configuration of a network for masks (kind: masks)",
    kind=Key("text", "masks", "masks", choices=("masks",)),
    name=Key("text", "masks", "name of the study; names the default out folder"),
    data=_map(
        "data",
        root=Key("text", None, "folder of the data", optional=True),
        table=Key("text", required=True, doc="table whose column `image` names the pictures"),
        masks=Key("text", required=True, doc="folder of the masks, <image>.png, inside not 0"),
        images=Key("text", "images", "folder of the pictures"),
        patients=Key(
            "list",
            [],
            "tables with the columns image and patient; a picture in none is a patient of its own",
            item=Key("text"),
        ),
    ),
    head=Key("text", "lungs", "name of the head"),
    backbone=Key("text", "unet", "network, one with a feature map (mdmt show unet)"),
    image_size=Key("int", 256, "side of what the network sees", low=32, high=4096),
    cv=_map(
        "cross-validation by patient",
        folds=Key("int", 5, "number of folds", low=2, high=100),
        validation=Key(
            "float", 0.15, "share of the training part for validation", low=0.01, high=0.9
        ),
        seed=Key("int", 0, "seed of the splits", low=0),
    ),
    negatives=Key(
        "float",
        0,
        "drawn pictures without anything to find, per picture with a mask",
        low=0,
        high=10,
    ),
    seed=Key("int", 0, "seed of the training", low=0, high=SEED),
    train=TRAIN,
    precision=PRECISION,
)


def paths_of(key: Key, where: str = "") -> list[str]:
    found = []
    for name, sub in key.fields.items():
        full = f"{where}.{name}" if where else name
        found.append(full)
        if sub.kind == "map":
            found += paths_of(sub, full)
    return found


def describe(key: Key = SCHEMA, indent: int = 0) -> str:
    """Return the schema as text: every key with its type, default and meaning."""
    lines = []
    for name, sub in key.fields.items():
        pad = "  " * indent
        if sub.kind == "map":
            lines.append(f"{pad}{name}:  # {sub.doc}{' (optional)' if sub.optional else ''}")
            if sub.partial:
                continue
            lines.append(describe(sub, indent + 1))
            continue
        limits = ""
        if sub.choices:
            limits = f" [{' | '.join(map(str, sub.choices))}]"
        elif sub.low is not None or sub.high is not None:
            low, high = ("" if v is None else v for v in (sub.low, sub.high))
            limits = f" [{low} .. {high}]"
        default = "required" if sub.required else f"default {sub.default!r}"
        lines.append(f"{pad}{name}: {sub.kind}{limits}, {default}  # {sub.doc}")
        item = sub.item
        while item is not None and item.kind == "list":
            item = item.item
        if item is not None and item.kind == "map":
            lines.append(describe(item, indent + 2))
    return "\n".join(lines)
