"""The defaults and what they stand on: confirmed by a public source, or inferred by us.

TinyUSFM's formulas and numbers are public only as far as its abstract, code and overview figure
(arXiv 2510.19239). A report therefore says of every default which of the two it is, and shows the
value that the run used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from echostill.platform.tables.fingerprint import flatten

Label = Literal["C", "I"]
LABELS: dict[Label, str] = {"C": "confirmed", "I": "inferred"}
UNRECORDED = "not recorded"
AUTOMATIC = "automatic"


@dataclass(frozen=True)
class Default:
    """A choice: its name, the keys that hold it, its label and the reason in one line."""

    topic: str
    name: str
    stage: str  # score, select or distill
    keys: tuple[str, ...]
    label: Label
    value: str  # the default itself, as a report writes it; empty where there is no setting
    reason: str
    none: str = AUTOMATIC  # what a key without a value means


@dataclass(frozen=True)
class LabelledValue:
    """A default with the value that was used."""

    default: Default
    value: str

    @property
    def differs(self) -> bool:
        """Whether another value than the default was used, as far as it is recorded."""
        recorded = self.default.keys and UNRECORDED not in self.value
        return bool(recorded) and self.value != self.default.value


_CORESET = "Coreset"
_GRADIENT = "Gradient"
_MASK = "Masks"
_OBJECTIVE = "Objective"
_TRAINING = "Optimiser"
TOPICS = (_CORESET, _GRADIENT, _MASK, _OBJECTIVE, _TRAINING)

DEFAULTS = (
    Default(
        _CORESET, "Teacher", "score", ("teacher.model",), "C",
        "usfm",
        "USFM is a BEiT-style ViT-B/16 with relative positions, query and value biases and mean "
        "pooling (USFM's configuration); a micro preset is the same class, smaller.",
    ),
    Default(
        _CORESET, "Student and proxy", "score", ("student",), "C",
        "tinyusfm",
        "ViT-Tiny/16 with 12 heads and 5,524,416 parameters (TinyUSFM's code); that the proxy is "
        "the student itself is inferred.",
    ),
    Default(
        _CORESET, "Number of clusters", "select", ("clusters",), "I",
        "automatic",
        "No count is public. Automatic is the square root of the pool's size, at most 1000.",
    ),
    Default(
        _CORESET, "Clustering iterations", "select", ("iterations",), "I",
        "25",
        "Spherical k-means on the teacher's normalised pooled features: its own pooling adds no "
        "new choice.",
    ),
    Default(
        _CORESET, "Images per cluster that k-means is trained on", "select",
        ("max_points_per_centroid",), "I",
        "256",
        "FAISS's own default, made explicit: centroids of a sample of 256,000 stand for millions; "
        "every image is assigned.",
        none="all",
    ),
    Default(
        _CORESET, "Distance rank", "select", (), "C",
        "",
        "Inside its cluster, 1 is the nearest to the centroid: drawn so in the overview figure. "
        "The metric (1 - cosine) is inferred.",
    ),
    Default(
        _CORESET, "Quality rank: penalty on spread", "select", ("penalty",), "I",
        "0",
        "The mean gradient over checkpoints, largest first, reproduces the figure's order; mean "
        "minus spread does too, a single epoch does not.",
    ),
    Default(
        _CORESET, "Fusion: weight of the distance rank", "select", ("alpha",), "I",
        "0.5",
        "The figure says 'Dual Rank' and its order agrees with a sum of both ranks, which does "
        "not prove it.",
    ),
    Default(
        _CORESET, "How the ranks are fused", "select", ("fusion",), "I",
        "sum",
        "A weighted sum gives the order of the figure's four images; so does a product, the "
        "maximum ties two of them, and two stages (first by gradient, then nearest) swap two.",
    ),
    Default(
        _CORESET, "Gradient outliers taken last", "select", ("trim",), "I",
        "0",
        "Nothing is trimmed in the figure. Corrupt images have large gradients too: 0.001 to 0.01 "
        "guards against them.",
    ),
    Default(
        _CORESET, "Quota", "select", ("quota",), "I",
        "automatic",
        "In proportion to the cluster's size by largest remainders, because the figure says 'Down "
        "to 10%'. No rule is public.",
    ),
    Default(
        _CORESET, "Balance of the budget", "select", ("balance",), "I",
        "none",
        "USFM draws organs in balance; whether TinyUSFM's coreset is balanced is not stated.",
        none="none",
    ),
    Default(
        _CORESET, "Budget", "select", ("budget",), "C",
        "0.1",
        "The paper takes 200,000 of about 2.2 million images, a tenth. What suits another pool is "
        "its owner's choice.",
    ),
    Default(
        _CORESET, "Selection method", "select", ("method",), "I",
        "coverage",
        "Our own: on real pools the reading of the abstract, 'dual-rank', covers less than random "
        "images do from a tenth of the pool on. 'random' is the baseline.",
    ),
    Default(
        _CORESET, "Images per group at most", "select", ("max_per_group",), "I",
        "automatic",
        "Nothing is said of patients or clips; automatic is no limit for the published reading and "
        "a wide one for 'coverage'.",
        none="no limit",
    ),
    Default(
        _GRADIENT, "Gradient of", "score", ("gradient_loss",), "I",
        "mse",
        "Frobenius norm of the loss's gradient in the prediction layer, exact from one forward "
        "pass. The paper's definition is not public.",
    ),
    Default(
        _GRADIENT, "Checkpoints of the proxy", "score", ("proxy.snapshots",), "I",
        "5",
        "The figure draws gradients over epochs; five to ten short epochs are our reading.",
    ),
    Default(
        _GRADIENT, "Mask draws per image", "score", ("mask_draws",), "I",
        "2",
        "The same draws for every image make gradients comparable; several of them steady the "
        "norm.",
    ),
    Default(
        _MASK, "Hidden blocks: ratio, side", "distill",
        ("masks.spatial.ratio", "masks.spatial.block_size"), "I",
        "0.6, 32",
        "0.6 and 32 pixels at 224 are A2MIM's and SimMIM's numbers and the defaults in USFM's "
        "mask class; TinyUSFM's are not public.",
    ),
    Default(
        _MASK, "Hidden blocks are filled with", "distill", (), "C",
        "",
        "The image's own mean (mask class in USFM's code).",
    ),
    Default(
        _MASK, "Stopped bands: ratio", "distill", ("masks.frequency.ratio",), "I",
        "0.45",
        "About half of the rings are black in USFM's figure.",
    ),
    Default(
        _MASK, "Stopped bands: centre, first radius, growth, largest width", "distill",
        (
            "masks.frequency.center_protect", "masks.frequency.base_bandwidth",
            "masks.frequency.increase_factor", "masks.frequency.max_increase",
        ), "I",
        "8, 12, 0.25, 16",
        "The class is in USFM's code, its numbers are in no commit. These give 12 bands at 224 "
        "and scale with the input.",
    ),
    Default(
        _MASK, "One view per domain", "distill", (), "I",
        "",
        "'Domain-separated' (abstract) read as two corrupted views of an image, where USFM puts "
        "both masks on one input.",
    ),
    Default(
        _OBJECTIVE, "Preset", "distill", ("objective.preset",), "I",
        "fixed-weight",
        "Our own: with twenty trainings of each, the reading of the abstract, 'tinyusfm' (weighed "
        "by consistency; the formulas are ours), was not ahead of this, the simpler one.",
    ),
    Default(
        _OBJECTIVE, "Views", "distill", ("objective.views",), "I",
        "separated",
        "'Domain-separated' read as one view per mask, as the figure draws them; USFM puts both on "
        "one input.",
    ),
    Default(
        _OBJECTIVE, "Pixel loss", "distill", ("objective.reconstruction.pixel",), "I",
        "l1",
        "L1 over hidden pixels, as in SimMIM and A2MIM, the teacher's lineage.",
    ),
    Default(
        _OBJECTIVE, "Frequency loss and its weight", "distill",
        ("objective.reconstruction.frequency", "objective.reconstruction.frequency_weight"), "I",
        "stopped, 1",
        "Error over the stopped frequencies. USFM compares after a DFT (figure); weights are not "
        "public.",
    ),
    Default(
        _OBJECTIVE, "Consistency: level", "distill", ("objective.level",), "I",
        "sample",
        "The figure draws an angle between the teacher's features of both views; the level is "
        "not stated.",
    ),
    Default(
        _OBJECTIVE, "Consistency: centring", "distill",
        ("objective.centring", "objective.momentum"), "I",
        "on, 0.99",
        "Raw pooled cosines of such teachers are all close to 1, which leaves the weight inert; "
        "less a running mean they spread (measured).",
    ),
    Default(
        _OBJECTIVE, "Consistency: weight", "distill", ("objective.weighting",), "I",
        "fixed",
        "None in the default. In 'tinyusfm' it is linear: more consistency, more weight (README: "
        "'reliable teacher knowledge with adaptive weighting'); (1 + cos) / 2 is our form.",
    ),
    Default(
        _OBJECTIVE, "Consistency: one for all layers, or one for each", "distill",
        ("objective.consistency",), "I",
        "last",
        "The figure draws one angle between the teacher's last features; one per group of blocks "
        "is an option.",
    ),
    Default(
        _OBJECTIVE, "Matched layers", "distill",
        ("objective.layers", "objective.teacher_layers"), "I",
        "automatic",
        "The figure draws three groups of four blocks; automatic is the end of each third, 4, 8 "
        "and 12 of 12.",
    ),
    Default(
        _OBJECTIVE, "Matched attention logits, matched relations", "distill",
        ("objective.attention_weight", "objective.relation_weight"), "I",
        "0",
        "The student's code exposes its logits for distillation and the sibling code matches them, "
        "but the figure shows tokens alone; relations are TinyMIM's. Both are options.",
    ),
    Default(
        _OBJECTIVE, "Distance of matched tokens", "distill",
        ("objective.distance", "objective.target"), "I",
        "mse, standardised",
        "Linear adapters as in the sibling code of the same first author; the distance and the "
        "target's normalisation are ours.",
    ),
    Default(
        _OBJECTIVE, "beta: weight of distillation", "distill", ("objective.beta",), "I",
        "1",
        "No loss weight is public; the sibling code uses 1.",
    ),
    Default(
        _OBJECTIVE, "How the losses combine", "distill", ("objective.combination",), "I",
        "sum",
        "A plain sum; 'dynamic' may also mean a balance of both, which is an option.",
    ),
    Default(
        _OBJECTIVE, "Decoder: width, blocks, heads", "distill",
        ("decoder.dim", "decoder.depth", "decoder.heads"), "I",
        "96, 1, 3",
        "MAE-Lite's decoder, as in the sibling code; the figure shows only that the student has "
        "its own.",
    ),
    Default(
        _TRAINING, "AdamW: peak rate at a batch of 256, betas, weight decay", "distill",
        ("training.learning_rate", "training.betas", "training.weight_decay"), "I",
        "0.00015, (0.9, 0.95), 0.05",
        "MAE-Lite's settings in the sibling code: 1.5e-4, (0.9, 0.95), 0.05. The paper's are not "
        "public.",
    ),
    Default(
        _TRAINING, "Steps, batch", "distill", ("training.steps", "training.batch_size"), "I",
        "20000, 1024",
        "Epochs and batch are not public; MAE-Lite trains 400 epochs.",
    ),
    Default(
        _TRAINING, "Balance of the draw", "distill", ("training.balance",), "I",
        "none",
        "USFM draws organs in balance; whether TinyUSFM does on its coreset is not stated.",
    ),
    Default(
        _TRAINING, "Warm-up share, then cosine", "distill", ("training.warmup",), "I",
        "0.1",
        "A tenth of the steps, as 40 of 400 epochs in the sibling code.",
    ),
    Default(
        _TRAINING, "Augmentation: crop scale, flip", "distill",
        ("training.augment.crop_scale", "training.augment.flip"), "I",
        "(0.4, 1), 0.5",
        "Random crops and flips without colour jitter, as in MAE-Lite; that its smallest crop of "
        "0.08 is raised to 0.4 is our choice.",
    ),
)  # fmt: skip


def labelled_values(
    score: Mapping[str, Any], select: Mapping[str, Any], distill: Mapping[str, Any]
) -> list[LabelledValue]:
    """Pair every default with the value that a store's resolved configurations hold.

    Args:
        score: configuration.json of the scores.
        select: of the coreset.
        distill: of one student's run.
    """
    students = distill.get("students") or [{}]
    used = {
        "score": flatten(dict(score)),
        "select": flatten(dict(select)),
        "distill": flatten({**distill, "objective": students[0].get("objective", {})}),
    }
    return [LabelledValue(item, _value(item, used[item.stage])) for item in DEFAULTS]


def _value(default: Default, flat: Mapping[str, Any]) -> str:
    if not default.keys:
        return "fixed by design"
    values = []
    for key in default.keys:
        if key not in flat:
            values.append(UNRECORDED)
        else:
            values.append(_written(flat[key], default.none))
    if len(set(values)) == 1:
        return values[0]
    return ", ".join(values)


def _written(value: Any, none: str) -> str:
    if value is None:
        return none
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_written(item, none) for item in value) + ")"
    return AUTOMATIC if value == "auto" else str(value)
