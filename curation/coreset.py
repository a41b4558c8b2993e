"""The select stage: scores in, coreset table out, every pool row with its reason."""

from collections.abc import Callable

from pydantic import Field

from echostill.curation.clustering import cluster_count
from echostill.curation.selection import SelectionSettings, resolve_budget, select_coreset
from echostill.platform.config import StageConfig
from echostill.platform.runs import claim, fingerprint
from echostill.platform.store import Plan, Store, describe_bytes, save_configuration
from echostill.platform.tables import MANIFEST, write_table


class SelectConfig(StageConfig, SelectionSettings):
    """Selection of a coreset from the scores."""

    name: str = Field("default", description="Name of the coreset.")
    seed: int = Field(0, ge=0, description="Seed of the clustering.")


def select(
    config: SelectConfig,
    *,
    overwrite: bool = False,
    report: Callable[[str, float], None] | None = None,
) -> str:
    """Pick the coreset and write it as ``coresets/<name>`` in the store.

    Args:
        config: What to pick.
        overwrite: Replace a coreset of that name that was made from something else.
        report: Told the stage and the fraction that is done.

    Returns:
        What was done, in words.
    """
    report = report or (lambda stage, fraction: None)
    store = Store(config.store)
    scores, pool = store.open_scores(), store.open_pool()
    budget = resolve_budget(config.budget, scores.rows)
    storage = store.coreset(config.name)
    wanted = fingerprint(config, inputs={"scores": scores.digest, "pool": pool.digest})
    claim(storage, wanted, "a coreset", overwrite)
    if storage.exists(MANIFEST):
        return f"already done: {storage.root}"
    save_configuration(storage, config)
    columns = ["image_id", "feature", "gradient_mean", "gradient_std"]
    report("reading", 0.0)
    features, groups = scores.read(columns), pool.read(["image_id", "group_id"])
    report("selecting", 0.1)
    table = select_coreset(features, groups, config)
    report("writing", 0.9)
    write_table(
        storage,
        table,
        stage="select",
        fingerprint=wanted.as_dict(),
        extra={"budget": budget},
    )
    clusters = len(set(table["cluster"].to_pylist()))
    return f"{budget} of {table.num_rows} images from {clusters} clusters: {storage.root}"


def plan_select(config: SelectConfig) -> Plan:
    """Say what :func:`select` would do."""
    store = Store(config.store)
    scores = store.open_scores()
    dimension = _feature_dimension(dict(scores.manifest["schema"])["feature"])
    storage = store.coreset(config.name)
    out = Plan("select")
    out.add("scores", f"{scores.rows} rows of {dimension} in {scores.storage.root}")
    out.add("budget", f"{resolve_budget(config.budget, scores.rows)} images by {config.method}")
    out.add("clusters", str(cluster_count(scores.rows, config.clusters)))
    memory = scores.rows * dimension * (2 + 4)
    out.add("memory", f"{describe_bytes(memory)} for the features as float16 and float32")
    out.add("result", storage.root)
    out.add("already done", "yes" if storage.exists(MANIFEST) else "no")
    return out


def _feature_dimension(text: str) -> int:
    """Read D out of Arrow's name of a fixed-size list, ``fixed_size_list<...>[D]``."""
    return int(text.rpartition("[")[2].rstrip("]"))
