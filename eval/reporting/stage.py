"""The report stage: tables, runs and evaluation in, one HTML file out that needs nothing else."""

import numpy as np
from pydantic import Field

from echostill.eval.names import RESULT
from echostill.eval.reporting.coreset import CoresetSections, GallerySizes
from echostill.eval.reporting.data import Material, find_runs, gather, read_evaluation
from echostill.eval.reporting.models import ModelSections
from echostill.eval.reporting.page import KeyNumber, header, page
from echostill.eval.reporting.recipe import Recipe, make_recipe
from echostill.platform import stages
from echostill.platform.config import ModelsConfig, result_relevant
from echostill.platform.names import Name
from echostill.platform.stage import Plan, Stage, StageResult, logged
from echostill.platform.stages import STAGES
from echostill.platform.tables.fingerprint import claimed, code_version
from echostill.platform.tables.store import (
    Store,
    finish_run,
    read_configuration,
    read_manifest,
)

REPORT = "report.html"


class ReportConfig(ModelsConfig):
    """The report on a coreset, the students trained on it, and their evaluation."""

    name: Name = Field("default", description="Name of the evaluation, which is the report's too.")
    coreset: Name = Field("default", description="Name of the coreset.")
    runs: tuple[Name, ...] = Field(
        (), description="Student runs to show; default every finished one."
    )
    gallery: int = Field(6, ge=1, le=24, description="Pictures in each gallery.")
    clusters: int = Field(8, ge=1, le=24, description="Clusters that are shown in pictures.")
    per_cluster: int = Field(8, ge=1, le=24, description="Pictures of each of these clusters.")
    per_organ: int = Field(8, ge=1, le=24, description="Pictures of each organ.")
    thumbnail: int = Field(128, ge=16, le=128, description="Longest side of a picture, pixels.")

    @property
    def sizes(self) -> GallerySizes:
        """How many pictures are shown."""
        return GallerySizes(
            self.gallery, self.clusters, self.per_cluster, self.per_organ, self.thumbnail
        )


@logged(stages.REPORT)
def report(config: ReportConfig, *, overwrite: bool = False) -> StageResult:
    """Write ``reports/<name>/report.html`` from what the store holds now.

    A report is cheap, so it is written anew every time; ``overwrite`` changes nothing.

    Returns:
        Counts of bytes and runs.
    """
    store = Store(config.store)
    material = gather(store, config.name, config.coreset, config.runs)
    storage = store.report(config.name)
    recipe = recipe_of(store, config, material)
    data = render(material, config.sizes, recipe).encode()
    storage.write(REPORT, data)
    for name, text in recipe.files.items():
        storage.write(name, text.encode())
    finish_run(
        storage,
        stage="report",
        files=[REPORT, RESULT, *recipe.files],
        fingerprint=claimed(storage),  # the evaluation's: the folder is its
        extra={"inputs": material.digests},
    )
    runs = _plural(len(material.runs), "run")
    return StageResult(
        "report",
        (f"reports/{config.name}",),
        storage.locate(REPORT),
        {"bytes": len(data), "runs": len(material.runs)},
        f"{len(data) / 1e6:.1f} MB, {runs}: {storage.locate(REPORT)}",
    )


def plan_report(config: ReportConfig, *, overwrite: bool = False) -> Plan:
    """Say what :func:`report` would do."""
    store = Store(config.store)
    evaluation, _ = read_evaluation(store, config.name)
    out = Plan("report")
    out.add("coreset", f"{store.open_coreset(config.coreset).rows} rows, {config.coreset}")
    out.add("runs", ", ".join(find_runs(store, config.runs)) or "none")
    out.add("candidates", ", ".join(entry["label"] for entry in evaluation["candidates"]))
    out.add("tasks", ", ".join(task["name"] for task in evaluation["tasks"]))
    out.add("result", store.report(config.name).locate(REPORT))
    return out


def recipe_of(store: Store, config: ReportConfig, material: Material) -> Recipe:
    """Put together how to make everything again."""
    stages_made = {
        name: values for name, values in material.configurations.items() if name in STAGES
    }
    if not config.teacher.weights and read_manifest(store.run("teacher")):
        stages_made["pretrain"] = read_configuration(store.run("teacher"))
    runs = [(run.name, run.configuration) for run in material.runs if run.same_coreset]
    return make_recipe(store, config.name, stages_made, runs, result_relevant(config))


def render(material: Material, sizes: GallerySizes, recipe: Recipe) -> str:
    """Return the page; the same material always gives the same text."""
    chosen, models = CoresetSections(material, sizes), ModelSections(material, recipe)
    title = f"Coreset and students: {material.name}"
    top = header(title, models.results.headline(), _key_numbers(material, chosen, models))
    return page(title, top, [*chosen.all(), *models.all()], code_version())


def _key_numbers(
    material: Material, chosen: CoresetSections, models: ModelSections
) -> list[KeyNumber]:
    scored, selected = len(chosen.rows.image_id), int(np.sum(chosen.rows.selected))
    organs = len(chosen.organs)
    numbers = [
        KeyNumber(f"{material.pool.rows:,}", "Pool", f"images, {_plural(organs, 'organ')}"),
        KeyNumber(
            f"{selected:,}", "Coreset", f"{selected / max(scored, 1):.1%} of the scored pool"
        ),
        KeyNumber(f"{len(chosen.clusters.number):,}", "Clusters"),
    ]
    results = models.results
    costs = {results.roles[cost["label"]]: cost for cost in reversed(results.costs)}
    teacher = costs.get("teacher")
    student = next((costs[r] for r in ("distilled", "MIM-only", "untrained") if r in costs), None)
    if teacher:
        numbers.append(KeyNumber(_millions(teacher["parameters"]), "Teacher", "parameters"))
    if student:
        share = (
            f", {student['parameters'] / teacher['parameters']:.1%} of the teacher"
            if teacher
            else ""
        )
        count = _millions(student["parameters"])
        numbers.append(KeyNumber(count, "Student", f"parameters{share}"))
    tasks = (
        f"{_plural(len(results.tasks), 'task')}, {_plural(len(results.comparisons), 'comparison')}"
    )
    numbers.append(KeyNumber(f"{len(results.candidates)}", "Candidates", tasks))
    return numbers


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}M" if count < 1e8 else f"{count / 1e6:.0f}M"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


STAGE = Stage(stages.REPORT, ReportConfig, report, plan_report)
