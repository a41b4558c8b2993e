"""The stages by name: their order, what each reads and writes, and what help says of them.

This table is the contract between the floors, as ``tables/schemas.py`` is for the columns. What a
stage does stands at the end of its own module, as a :class:`echostill.platform.stage.Stage`;
``jobs/stages.py`` brings the two together. The sections of a configuration file, the command line,
`echostill run`, job scripts, dry runs, the report's recipe and the documents follow this table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class StageInfo:
    """What is known of a stage without importing it.

    Attributes:
        name: Name of its command, of its section in a configuration file and of its event log.
        summary: One line for help.
        example: A command.
        reads: Folders of the store that it reads.
        writes: Folder of the store that it writes.
        in_run: Whether `echostill run` runs it by default.
        on_ray: Whether it always computes on Ray, so that its address is checked beforehand.
        tracked: Whether it records runs in MLflow, which is checked beforehand.
        alone: Whether no other job may work on the store meanwhile. Otherwise only none that writes
            the same result.
        section: Section of a configuration file that holds its keys.
    """

    name: str
    summary: str
    example: str
    reads: tuple[str, ...]
    writes: str
    in_run: bool = True
    on_ray: bool = True
    tracked: bool = True
    alone: bool = True
    section: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "section", self.section or self.name)


INGEST = StageInfo(
    "ingest",
    "Read images and DICOM cines into the pool: ids, groups, one decode, quarantine.",
    "echostill ingest store=runs/mine source=/data/ultrasound",
    reads=(),
    writes="pool",
    tracked=False,
)
PRETRAIN = StageInfo(
    "pretrain",
    "Pretrain a teacher with the USFM recipe (block and band-stop mask on one input).",
    "echostill pretrain --config config.yaml training.steps=20000",
    reads=("pool",),
    writes="runs",
    in_run=False,
)
SCORE = StageInfo(
    "score",
    "Train the proxy, then compute teacher features and gradient norms over the pool.",
    "echostill score --config config.yaml workers=8",
    reads=("pool",),
    writes="scores",
)
DUPLICATES = StageInfo(
    "duplicates",
    "Find exact, near and semantic copies in the pool, and which of them stay.",
    "echostill duplicates --config config.yaml near_distance=16",
    reads=("pool", "scores"),
    writes="duplicates",
    on_ray=False,
    tracked=False,
)
SELECT = StageInfo(
    "select",
    "Pick the coreset: cluster, rank by distance and by gradient, fill the quotas.",
    "echostill select --config config.yaml budget=200000",
    reads=("pool", "scores", "duplicates", "leaks", "pins"),
    writes="coresets",
    on_ray=False,  # only some: the stage itself checks
    tracked=False,
    alone=False,  # it adds a coreset, also from the service while a training goes on
)
DISTILL = StageInfo(
    "distill",
    "Distil the teacher into the student on a coreset (or train it without a teacher).",
    "echostill distill --config config.yaml training.workers=4",
    reads=("pool", "coresets"),
    writes="runs",
)
EVALUATE = StageInfo(
    "evaluate",
    "Compare teacher and students on labelled benchmarks, split by group.",
    "echostill evaluate --config config.yaml",
    reads=("runs",),
    writes="reports",
)
REPORT = StageInfo(
    "report",
    "Write the self-contained HTML report.",
    "echostill report --config config.yaml",
    reads=("pool", "scores", "coresets", "runs", "reports"),
    writes="reports",
    on_ray=False,
    tracked=False,
    alone=False,
)
CACHE = StageInfo(
    "cache",
    "Cache the teacher's outputs for the repeating views of a distillation (its own settings).",
    "echostill cache --config config.yaml training.views_per_image=8 --dry-run",
    reads=("pool", "coresets"),
    writes="teacher-cache",
    in_run=False,
    tracked=False,
    section="distill",
)
SWEEP = StageInfo(
    "sweep",
    "Distil with every combination of a grid of settings, on Ray Tune, and compare the runs.",
    "echostill sweep --config examples/sweep.yaml",
    reads=("pool", "coresets"),
    writes="sweeps",
    in_run=False,
)

# In the order in which they follow each other.
STAGES = {
    info.name: info
    for info in (INGEST, PRETRAIN, SCORE, DUPLICATES, SELECT, DISTILL, EVALUATE, REPORT)
}
# Run as stages are, but not steps of the pipeline: a file of a sweep is the sweep's alone.
BESIDE = {info.name: info for info in (CACHE, SWEEP)}
IN_RUN = tuple(name for name, info in STAGES.items() if info.in_run)
