"""Settings of distillation: its students, and the runs they give."""

from dataclasses import dataclass

from pydantic import Field, model_validator

from echostill.distill.cache.teacher_cache import TokenPrecision
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.platform.config import Config, ModelsConfig, added, execution
from echostill.platform.masking.masks import MaskSettings
from echostill.platform.masking.mim import DecoderSettings
from echostill.platform.models.registry import input_patches
from echostill.platform.names import Name
from echostill.platform.training.settings import TrainingSettings


class StudentSettings(Config):
    """A student to train: its name and its objective."""

    name: Name = Field("distilled", description="Name of the student; its runs are NAME-SEED.")
    model: str | None = Field(None, description="A model of the zoo; default the stage's student.")
    image_size: int | None = added(
        "Input side in pixels; default student_image_size for the stage's student, else the "
        "model's own.",
        ge=1,
    )
    initial_weights: str | None = Field(
        None, description="Weights file or finished run to start from; default fresh weights."
    )
    objective: ObjectiveSettings = ObjectiveSettings()


@dataclass(frozen=True)
class StudentRun:
    """One student with one seed."""

    name: str
    student: str
    model: str
    initial_weights: str | None
    objective: ObjectiveSettings
    seed: int
    image_size: int | None = None  # of the input; None is the model's own

    @property
    def shares(self) -> tuple[object, ...] | None:
        """What must be equal for two runs to share a pass of the teacher; None to share nothing.

        The teacher costs several times what a small student does, so sharing always pays. A run
        without a teacher has nothing to share.
        """
        if not self.objective.distil:
            return None
        masks = self.objective.masks
        patches = input_patches(self.model, self.image_size)
        shown = (self.objective.views, self.objective.whole_image)
        return (self.seed, shown, masks and masks.model_dump_json(), patches)


class DistillConfig(ModelsConfig):
    """Distillation on a coreset; one run per student and seed."""

    coreset: Name = Field("default", description="Name of the coreset.")
    students: tuple[StudentSettings, ...] = Field((StudentSettings(),), min_length=1)
    seeds: tuple[int, ...] = Field((), description="Seeds of the runs; default the one seed.")
    training: TrainingSettings = TrainingSettings(steps=20_000, batch_size=1024)
    decoder: DecoderSettings = DecoderSettings()
    masks: MaskSettings = MaskSettings()
    cache: bool = Field(
        False, description="Take the teacher's outputs from what `echostill cache` made."
    )
    cache_name: Name = execution("default", "Name of the teacher cache in the store.")
    cache_precision: TokenPrecision = Field("float16", description="How cached tokens are kept.")
    cache_limit_gb: float = execution(50.0, "Largest teacher cache, in GB.", gt=0)

    at_once: int | None = execution(None, "Runs side by side; default as many as fit.", ge=1)
    share_teacher: bool = execution(
        True, "Train students that see the same views together, on one pass of the teacher."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> "DistillConfig":
        names = [run.name for run in self.runs()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:  # they would be trained side by side into one folder
            raise ValueError(f"run '{twice[0]}' is listed more than once: name students apart")
        return self

    def runs(self) -> list[StudentRun]:
        """List the runs, one per student and seed."""
        seeds = self.seeds or (self.seed,)
        return [
            StudentRun(
                name=f"{student.name}-{seed}",
                student=student.name,
                model=student.model or self.student,
                initial_weights=student.initial_weights,
                objective=student.objective,
                seed=seed,
                image_size=student.image_size
                or (self.student_image_size if student.model is None else None),
            )
            for student in self.students
            for seed in seeds
        ]

    def alone(self, run: StudentRun) -> "DistillConfig":
        """Return the configuration of one run, without the other students and seeds."""
        own = tuple(student for student in self.students if student.name == run.student)
        return self.model_copy(update={"students": own, "seeds": (run.seed,), "seed": run.seed})
