"""The select stage: reads the scores and writes the coreset table, with a reason for every row."""

from collections.abc import Callable
from typing import Literal

import pyarrow as pa
from pydantic import Field

from echostill.curation.selection.clustering import cluster_count, cluster_pieces, training_rows
from echostill.curation.selection.core import choose, prepare_request
from echostill.curation.selection.decided.exclusions import ExclusionSettings, exclusions
from echostill.curation.selection.decided.lists import in_pool, join_images, read_images
from echostill.curation.selection.decided.pin_table import selection_tables
from echostill.curation.selection.features import (
    TableFeatures,
    fits_in_memory,
    inverse,
    load_rows,
)
from echostill.curation.selection.growth import (
    Members,
    describe_growth,
    distance_from_fresh,
    read_duplicates,
)
from echostill.curation.selection.kmeans import usable_gpus
from echostill.curation.selection.methods import METHODS
from echostill.curation.selection.pixels import STATISTICS, explained_in_pool
from echostill.curation.selection.settings import (
    SelectionSettings,
    check_limits,
    operations,
    resolve_budget,
)
from echostill.platform import stages
from echostill.platform.cluster.nodes import Nodes, capacity
from echostill.platform.cluster.plans import WorkerPlan, plan_replicas
from echostill.platform.config import StageConfig, added, execution
from echostill.platform.errors import UsageError, nearest
from echostill.platform.memory import available_memory
from echostill.platform.names import Name
from echostill.platform.phases import phase
from echostill.platform.preflight.clusters import check_ray
from echostill.platform.ray_tasks import TaskPool
from echostill.platform.stage import Plan, Stage, StageResult, logged
from echostill.platform.tables.fingerprint import Claim, claimed, fingerprint
from echostill.platform.tables.storage import sha256
from echostill.platform.tables.store import Store, describe_bytes, save_configuration
from echostill.platform.tables.table import (
    MANIFEST,
    Table,
    encode_parquet,
    write_table,
)
from echostill.platform.tables.versions import VERSIONS, latest, scored_pool

BYTES_PER_IMAGE = 450  # ids, groups, ranks and reasons while the coreset is written (measured)


class SelectConfig(StageConfig, SelectionSettings, ExclusionSettings):
    """Selection of a coreset from the scores."""

    name: Name = Field("default", description="Name of the coreset.")
    seed: int = Field(0, ge=0, description="Seed of the clustering and of random methods.")
    exclude: str | None = Field(
        None,
        description="A CSV or Parquet file of images that are never chosen: columns image_id and, "
        "optionally, reason.",
    )
    pin: str | None = Field(
        None, description="A file with the same columns, of images that are always chosen."
    )
    grow: Name | None = added(
        "Name of a coreset whose images all stay: the rest of the budget is chosen beside them."
    )
    workers: int | Literal["auto"] = execution(
        "auto",
        "Ray workers that read features and assign them; 0 uses threads of this process. 'auto' is "
        "0, or one per CPU of the cluster if the features are larger than this machine's memory.",
        ge=0,
    )
    scratch: str | None = execution(
        None, "Folder for features that do not fit in memory; default the system's."
    )


@logged(stages.SELECT)
def select(
    config: SelectConfig,
    *,
    overwrite: bool = False,
    excluded: pa.Table | None = None,
    pinned: pa.Table | None = None,
    report: Callable[[str, float], None] | None = None,
) -> StageResult:
    """Select the coreset and write it as ``coresets/<name>`` in the store.

    Args:
        config: the stage's configuration.
        overwrite: replace a coreset of that name that has another fingerprint.
        excluded: image_id and reason of images that are never chosen, besides ``config.exclude``,
            copies, leaks, named flags and bans.
        pinned: the same columns, for images that are always chosen.
        report: called with the stage and the fraction that is done.

    Returns:
        Counts of ``selected`` and ``images``, and of ``clusters``.
    """
    report = report or (lambda stage, fraction: None)
    store = Store(config.store)
    scores, whole = store.open_scores(), store.open_pool()
    pool = scored_pool(whole, scores)
    features = TableFeatures(scores)
    budget = resolve_budget(config.budget, scores.rows)
    check_limits(config, scores.rows, features.dimension)
    _check_cluster(config, scores.rows, features.dimension)
    members = _members(config, store, budget)
    decided = _decided(config, store, pool, excluded, pinned, members)
    claim = _claim(config, store, scores, pool, decided, members)
    if config.gpus and not _is_made(claim):
        # The fingerprint says where the clusters were computed, since a GPU rounds differently.
        config = config.model_copy(update={"gpus": usable_gpus(config.gpus)})
        claim = _claim(config, store, scores, pool, decided, members)
    storage, wanted = claim.storage, claim.wanted
    if _is_made(claim):
        made = Table.open(storage, "select")
        sentence = f"already done: {storage.root}{_not_scored(whole, pool)}"
        return _result(config, made, sentence, already_done=True)
    claim.check(overwrite)
    report("reading", 0.0)
    # Check everything before the folder is claimed and anything is computed.
    with phase("scores"):
        columns = scores.read(["image_id", "gradient_mean", "gradient_std"])
    with phase("pool"):
        groups = pool.read(_pool_columns(config, pool))
    with phase("ids and groups"):
        request = prepare_request(columns, groups, config, **decided)
    with phase("pixel statistics"):
        known = {name for name, _ in pool.manifest["schema"]}.intersection(STATISTICS)
        pixels = pool.read(["image_id", *sorted(known)])
        explained = explained_in_pool(request.ids, request.quality, pixels)
    fresh = None
    if members is not None:
        alone = _decided(config, store, pool, excluded, pinned)
        fresh = prepare_request(columns, groups, config, **alone)
    del columns, groups, pixels
    claim.take(overwrite)
    save_configuration(storage, config)
    report("clustering", 0.1)
    tasks = TaskPool(_workers(config, scores.rows, features.dimension), address=config.address)
    clustering = cluster_pieces(features, request.ids, request.order, config, tasks)
    report("ranking", 0.6)
    table = choose(
        request, config, clustering, features=features, tasks=tasks, scratch=config.scratch
    )
    grown = None
    if members is not None and fresh is not None:
        anew = choose(
            fresh, config, clustering, features=features, tasks=tasks, scratch=config.scratch
        )
        with phase("distance from a fresh coreset"):
            place, cluster = inverse(request.order), clustering.assignment
            rows = load_rows(features, place, cluster, tasks, config.scratch)
            grown = distance_from_fresh(table, anew, members, rows, config.seed)
    report("writing", 0.9)
    with phase("writing"):
        write_table(
            storage,
            table,
            stage="select",
            fingerprint=wanted.as_dict(),
            extra={
                "budget": budget,
                "clusters": clustering.count,
                "training_rows": clustering.training_rows,
                # R squared of the quality rank on six statistics of the pixels; null: unknown.
                "quality_explained_by_pixels": explained,
                **({"grown": grown} if grown else {}),
                **({"pool_version": latest(pool).number} if whole.manifest.get(VERSIONS) else {}),
            },
        )
    made = Table.open(storage, "select")
    return _result(
        config,
        made,
        f"{budget} of {made.rows} images from {clustering.count} clusters: {storage.root}"
        f"{f'. It has {describe_growth(grown)}' if grown else ''}{_not_scored(whole, pool)}",
    )


def _is_made(claim: Claim) -> bool:
    """Whether the very coreset is there already."""
    storage = claim.storage
    return storage.exists(MANIFEST) and claimed(storage).digest == claim.wanted.digest


def _members(config: SelectConfig, store: Store, budget: int) -> Members | None:
    """Return the members of the coreset that is extended, where one is."""
    return None if config.grow is None else Members.of(store, config.grow, config.name, budget)


def _not_scored(whole: Table, pool: Table) -> str:
    """Say that the pool has grown since it was scored, where it has."""
    if whole.rows == pool.rows:
        return ""
    return (
        f". {whole.rows - pool.rows} image(s) of version {latest(whole).number} of the pool are "
        "not scored yet and could not be chosen: run `echostill score`"
    )


def _result(
    config: SelectConfig, made: Table, sentence: str, *, already_done: bool = False
) -> StageResult:
    return StageResult(
        "select",
        (f"coresets/{config.name}",),
        made.storage.root,
        {
            "selected": made.manifest["budget"],
            "images": made.rows,
            "clusters": made.manifest["clusters"],
        },
        sentence,
        already_done,
    )


def _decided(
    config: SelectConfig,
    store: Store,
    pool: Table,
    excluded: pa.Table | None = None,
    pinned: pa.Table | None = None,
    members: Members | None = None,
) -> dict[str, pa.Table | None]:
    """Collect the images that are never chosen and those that are always chosen."""
    banned, kept = selection_tables(store)
    copies = exclusions(store, config, pool)
    named = {
        key: None if path is None else in_pool(read_images(path, key), pool, key, path)
        for key, path in (("exclude", config.exclude), ("pin", config.pin))
    }
    out = join_images([named["exclude"], copies, banned, excluded], "exclude")
    always = [named["pin"], kept, pinned]
    if members is not None:
        out = members.settle(out, read_duplicates(store, config.exclude_duplicates))
        always.append(members.table)
    return {"excluded": out, "pinned": join_images(always, "pin")}


def _claim(
    config: SelectConfig,
    store: Store,
    scores: Table,
    pool: Table,
    decided: dict[str, pa.Table | None],
    members: Members | None = None,
) -> Claim:
    """Return the claim on the coreset's folder."""
    inputs = {"scores": scores.digest, "pool": pool.digest}
    about = {"inputs.scores": f"{scores.rows} images", "inputs.pool": f"{pool.rows} images"}
    if members is not None:
        inputs["grown coreset"] = members.digest
        about["inputs.grown coreset"] = f"{len(members.ids)} images of '{members.name}'"
    for name, table in decided.items():
        if table is not None:
            inputs[name] = sha256(encode_parquet(table))
            about[f"inputs.{name}"] = f"{table.num_rows} images"
    wanted = fingerprint(config, inputs=inputs, without=("exclude", "pin"))
    return Claim(store.coreset(config.name), wanted, "select", "a coreset", about=about)


def plan_select(config: SelectConfig, *, overwrite: bool = False) -> Plan:
    """Describe what :func:`select` would do."""
    store = Store(config.store)
    scores, whole = store.open_scores(), store.open_pool()
    pool = scored_pool(whole, scores)
    dimension = TableFeatures(scores).dimension
    check_limits(config, scores.rows, dimension)
    _check_cluster(config, scores.rows, dimension)
    _pool_columns(config, pool)
    members = _members(config, store, resolve_budget(config.budget, scores.rows))
    decided = _decided(config, store, pool, members=members)
    claim = _claim(config, store, scores, pool, decided, members)
    replaces = claim.check(overwrite)
    storage = claim.storage
    clusters = cluster_count(scores.rows, config.clusters)
    sample = training_rows(scores.rows, config)
    out = Plan("select")
    out.add("scores", f"{scores.rows} rows of {dimension} in {scores.storage.root}")
    if unscored := _not_scored(whole, pool):
        out.add("pool", unscored.removeprefix(". "))
    where = "inside clusters" if config.inside_clusters else "over the whole pool"
    out.add("budget", f"{resolve_budget(config.budget, scores.rows)} images by {config.method}")
    out.add("chosen", where)
    if members is not None:
        out.add("grow", f"all {len(members.ids)} images of coreset '{members.name}' stay")
    out.add("clusters", str(clusters))
    out.add(
        "k-means",
        f"{config.iterations} iterations on {sample} of {scores.rows} images, "
        + (f"GPU {', '.join(map(str, config.gpus))}" if config.gpus else "CPU"),
    )
    workers = _workers(config, scores.rows, dimension, plan=True)
    out.add(
        "assignment",
        f"by {workers} Ray worker(s)" if workers else "in threads of this process",
    )
    memory = sample * dimension * 4 + scores.rows * BYTES_PER_IMAGE
    out.add("memory", f"{describe_bytes(memory)}: the training sample, and the coreset table")
    if METHODS[config.method].compares:
        size = describe_bytes(scores.rows * dimension * 2)
        fits = fits_in_memory(scores.rows, dimension)
        where = "in memory" if fits else f"in a file in {config.scratch or 'the temporary folder'}"
        out.add("features", f"{size} {where}")
        needed = operations(config, scores.rows, dimension, config.inside_clusters)
        out.add("operations", f"about {needed:.1e}, of {config.operation_limit:.1e} allowed")
    out.add("result", storage.root)
    done = storage.exists(MANIFEST) and not replaces
    out.add("already done", "yes" if done else "no, another one is replaced" if replaces else "no")
    return out


def _pool_columns(config: SelectConfig, pool: Table) -> list[str]:
    """Columns of the pool that the selection reads."""
    known = [name for name, _ in pool.manifest["schema"]]
    if config.balance is not None and config.balance not in known:
        raise UsageError(
            f"the pool has no column '{config.balance}' to balance by."
            f"{nearest(config.balance, known)}"
        )
    flags = config.flags_last if METHODS[config.method].flags else ()
    pixels = STATISTICS if config.rank_by == "beyond-pixels" else ()
    wanted = {"image_id", "group_id", config.balance, *flags, *pixels}
    return [name for name in known if name in wanted]


def _check_cluster(config: SelectConfig, rows: int, dimension: int) -> None:
    """Check that the cluster answers, where the selection needs one."""
    if _workers(config, rows, dimension, plan=True):
        check_ray(config.address)


def _workers(config: SelectConfig, rows: int, dimension: int, plan: bool = False) -> int:
    """Resolve the number of Ray workers; a plan does not start Ray to count CPUs."""
    if config.workers != "auto":
        return config.workers
    if rows * dimension * 2 <= available_memory():
        return 0
    from echostill.platform.cluster.waiting import dry_nodes, plan_on_cluster

    if plan:
        return max(capacity(dry_nodes(config), 1.0), 1)
    return plan_on_cluster(config, _one_per_cpu).workers


def _one_per_cpu(nodes: Nodes) -> WorkerPlan:
    return plan_replicas(1, max(capacity(nodes, 1.0), 1), nodes, device="cpu", threads=1)


STAGE = Stage(stages.SELECT, SelectConfig, select, plan_select)
