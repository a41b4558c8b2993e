"""The cache stage: plans a teacher cache, refuses one that is too large, and builds it."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from echostill.distill.cache.building import CacheJob, CacheWorker
from echostill.distill.cache.teacher_cache import (
    CACHED_VIEWS,
    COMPUTED_IN,
    HELD,
    SHARD_BYTES,
    CachedWeights,
    CacheSpec,
    TeacherCache,
    write_manifest,
)
from echostill.distill.objective.core import DistillationObjective
from echostill.distill.objective.outputs import Needs, TeacherRequest, all_needs
from echostill.distill.settings import DistillConfig, StudentRun
from echostill.platform import stages
from echostill.platform.cluster.nodes import Nodes
from echostill.platform.cluster.plans import WorkerPlan, gpus_for, plan_workers, threads_each
from echostill.platform.cluster.waiting import cluster_nodes, plan_on_cluster
from echostill.platform.computing.settling import say_if_slow, settled
from echostill.platform.errors import UsageError
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel
from echostill.platform.models import Encoder, create_encoder
from echostill.platform.models.registry import input_patches
from echostill.platform.models.shapes import Layer
from echostill.platform.models.weights import Weights, find_teacher
from echostill.platform.progress import Progress
from echostill.platform.ray_tasks import TaskPool
from echostill.platform.shards.records import Record, are_whole, read_records
from echostill.platform.stage import Plan, Stage, StageResult, logged
from echostill.platform.tables.fingerprint import Claim, difference
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store, describe_bytes, selected_ids
from echostill.platform.tables.table import MANIFEST
from echostill.platform.training.staging import stage_images


def cache_storage(config: DistillConfig) -> Storage:
    """Folder of the cache.

    Raises:
        UsageError: The store is remote, and a cache is read by memory mapping.
    """
    storage = Store(config.store).teacher_cache(config.cache_name)
    if not storage.is_local:
        raise UsageError(
            f"a teacher cache is memory-mapped and cannot lie in '{config.store}': use a store on "
            "a local or shared disk, or cache: false."
        )
    return storage


def cache_job(config: DistillConfig, teacher: Weights, image_ids: Sequence[str]) -> CacheJob:
    """Return what the cache of a configuration holds: what the terms of its students need.

    Raises:
        UsageError: Views never repeat, so that there is no finite set of them; no student follows
            a teacher; or one needs what a cache cannot hold.
    """
    views = config.training.views_per_image
    if views is None:
        raise UsageError(
            "a teacher cache needs a finite set of views: set training.views_per_image."
        )
    runs = [run for run in config.runs() if run.objective.distil]
    if not runs:
        raise UsageError("no student follows a teacher: there is nothing to cache.")
    with torch.device("meta"):
        encoder = teacher.outline()
        requests = [_request(run, encoder, config.decoder) for run in runs]
    for run, request in zip(runs, requests, strict=True):
        _check_held(run, request)
    needs = all_needs(request.needs for request in requests)
    masks = {run.objective.masks or config.masks for run in runs}
    if len(masks) > 1:
        raise UsageError(
            "the students' masks differ, and a teacher cache holds the views of one: distil them "
            "in turn, each with a cache_name, or use cache: false."
        )
    sides = {input_patches(run.model, run.image_size) for run in runs}
    if len(sides) > 1:
        raise UsageError(
            "the students' input or patch sizes differ, and a teacher cache holds the views of "
            "one: distil them in turn, each with a cache_name, or use cache: false."
        )
    image_size, patch_size = sides.pop()
    spec = CacheSpec(
        layers=needs.blocks,
        tokens=needs.tokens,
        views=views,
        precision=config.cache_precision,
        images=len(image_ids),
        shapes=_kept_shapes(encoder, needs),
        pooled=encoder.feature_dim,
        shard_bytes=SHARD_BYTES,
    )
    store = Store(config.store)
    return CacheJob(
        store=store.root,
        teacher=teacher,
        image_ids=tuple(sorted(image_ids)),
        spec=spec,
        view_seed=config.training.view_seed,
        augment=config.training.augment,
        masks=masks.pop().scaled_to(image_size, patch_size),
        image_size=image_size,
        pool_digest=store.open_pool().digest,
    )


def open_cache(config: DistillConfig, teacher: Weights, image_ids: Sequence[str]) -> CachedWeights:
    """Open the cache for training, to be used in place of the teacher's weights.

    A cache may hold more than is needed.

    Raises:
        UsageError: There is none, or it was made from another teacher, transform, mask or set of
            images; the message says what differs.
    """
    job, storage = cache_job(config, teacher, image_ids), cache_storage(config)
    cache = TeacherCache(storage.local_path())
    asked_for = config.training.precision
    computed_in = cache.computed_in if asked_for == "auto" else asked_for
    job = replace(job, computed_in=computed_in)
    made = cache.manifest["fingerprint"]
    wanted = job.fingerprint().as_dict()
    for key in ("layers", "tokens"):
        held, asked = made["configuration"][key], wanted["configuration"][key]
        enough = set(asked) <= set(held) if isinstance(asked, list) else held or not asked
        if enough:
            wanted["configuration"][key] = held
    changes = difference(made, wanted)
    if changes:
        raise UsageError(
            f"the teacher cache '{storage.root}' was made from something else "
            f"({'; '.join(changes)}). Make it anew with `echostill cache --overwrite`, give it "
            "another name (cache_name), or train without it (cache: false)."
        )
    return CachedWeights(**vars(teacher), folder=storage.local_path(), computed_in=computed_in)


@logged(stages.CACHE)
def make_cache(
    config: DistillConfig, *, overwrite: bool = False, force: bool = False
) -> StageResult:
    """Compute the teacher's outputs for every view of every image of the coreset.

    Args:
        config: The distillation it is for.
        overwrite: Replace a cache that was made from something else.
        force: Build it even if it is larger than ``cache_limit_gb``.

    Returns:
        Counts of images, views, shards and bytes.

    Raises:
        UsageError: It would be too large, or there is another cache already.
    """
    job, storage = coreset_job(config), cache_storage(config)
    job = _settled(config, job, storage, overwrite)
    if not force:
        _check_size(job.spec, config.cache_limit_gb)
    wanted = job.fingerprint()
    Claim(storage, wanted, "cache", "a teacher cache").take(overwrite)
    spec = job.spec
    what = (
        f"{spec.images} images x {spec.views} views, {describe_bytes(spec.bytes)} in "
        f"{spec.precision}: {storage.root}"
    )
    if storage.exists(MANIFEST):
        return _result(config, storage, spec, f"already done: {what}", already_done=True)
    records = _finished(storage, spec)
    resumed = len(records)
    todo = [index for index in range(spec.shards) if index not in records]
    _check_disk(storage, len(todo) * spec.images_per_shard * spec.bytes_per_image)
    with Progress("cache", spec.shards, enabled=config.progress) as bar:
        bar.update(resumed)
        for record in _build(config, job, storage, todo):
            records[record["shard"]] = record
            bar.advance()
    ordered = [records[index] for index in sorted(records)]
    write_manifest(storage, spec, job.image_ids, ordered, wanted.as_dict())
    earlier = f" ({resumed} of {spec.shards} shards finished earlier)" if resumed else ""
    return _result(config, storage, spec, f"{what}{earlier}")


def _result(
    config: DistillConfig,
    storage: Storage,
    spec: CacheSpec,
    sentence: str,
    *,
    already_done: bool = False,
) -> StageResult:
    return StageResult(
        "cache",
        (f"teacher-cache/{config.cache_name}",),
        storage.root,
        {
            "images": spec.images,
            "views": spec.images * spec.views,
            "shards": spec.shards,
            "bytes": spec.bytes,
        },
        sentence,
        already_done,
    )


def plan_cache(config: DistillConfig, *, overwrite: bool = False) -> Plan:
    """Describe what :func:`make_cache` would do, and how large the cache would be."""
    job, storage = coreset_job(config), cache_storage(config)
    job = _settled(config, job, storage, overwrite, connect=False)
    replaces = Claim(storage, job.fingerprint(), "cache", "a teacher cache").check(overwrite)
    spec = job.spec
    out = Plan("cache")
    out.add("teacher", job.teacher.describe())
    out.add("views", f"{spec.images} images x {spec.views} x 2 (hidden blocks, stopped bands)")
    out.add("kept", f"pooled, {_describe_outputs(spec)} in {spec.precision}")
    out.add("computed in", job.computed_in)
    limit = config.cache_limit_gb * 1e9
    above = " ABOVE the limit" if spec.bytes > limit else ""
    out.add("size", f"{describe_bytes(spec.bytes)}, limit {describe_bytes(limit)}{above}")
    finished = 0 if replaces else len(_finished(storage, spec))
    done = "yes" if storage.exists(MANIFEST) and not replaces else f"{finished} shards"
    out.add("already done", f"{done} of {spec.shards}" if done != "yes" else done)
    out.add("result", storage.root)
    return out


def _request(run: StudentRun, teacher: Encoder, decoder: DecoderSettings) -> TeacherRequest:
    """Return what a run asks of its teacher, which its objective knows without any weights."""
    student = MaskedImageModel(create_encoder(run.model, image_size=run.image_size), decoder)
    return DistillationObjective(student, teacher, run.objective).request


def _kept_shapes(teacher: Encoder, needs: Needs) -> tuple[tuple[int, int], ...]:
    """Return patches and channels of all tokens that a cache keeps, in the order of its outputs."""
    layers = [teacher.layer(block) for block in needs.blocks]
    if needs.tokens:
        layers.append(Layer(teacher.dim, teacher.patch_grid()))
    return tuple((layer.grid[0] * layer.grid[1], layer.dim) for layer in layers)


def _describe_outputs(spec: CacheSpec) -> str:
    """Say which token outputs are kept and of what shape; a model with stages has several."""
    named = list(zip(spec.outputs, spec.shapes, strict=True))
    return "; ".join(
        f"{', '.join(name for name, own in named if own == shape)}: {shape[0]} tokens of {shape[1]}"
        for shape in dict.fromkeys(spec.shapes)
    )


def _check_held(run: StudentRun, request: TeacherRequest) -> None:
    """Refuse what a cache does not hold."""
    for name, needs in request.by_name.items():
        missing = needs.kinds - HELD
        if missing:
            raise UsageError(
                f"'{run.student}' has the term '{name}', which needs the teacher's "
                f"{needs.only(missing)}, and a teacher cache does not hold that: use cache: false."
            )
    if request.whole_image:
        raise UsageError(
            f"'{run.student}' has a teacher that sees the whole image (teacher_sees), and a "
            "teacher cache holds what it makes of corrupted views: use cache: false."
        )
    if request.views != CACHED_VIEWS:
        raise UsageError(
            f"'{run.student}' has views '{request.views}' and a teacher cache holds those of "
            f"'{CACHED_VIEWS}': use cache: false."
        )


def coreset_job(config: DistillConfig) -> CacheJob:
    """Return what the cache of a configuration holds, for the images of its coreset."""
    ids = selected_ids(Store(config.store).open_coreset(config.coreset))
    return cache_job(config, find_teacher(config), ids)


def _settled(
    config: DistillConfig,
    job: CacheJob,
    storage: Storage,
    overwrite: bool,
    *,
    connect: bool = True,
) -> CacheJob:
    """Settle what the teacher computes in: as in the training that the cache is for."""
    computed_in = settled(
        config.training.precision,
        storage,
        config,
        partial(_plan, config, job.spec.shards),
        overwrite=overwrite,
        connect=connect,
        key=COMPUTED_IN,
    )
    return replace(job, computed_in=computed_in)


def _plan(config: DistillConfig, shards: int, nodes: Nodes) -> WorkerPlan:
    device = config.compute_on
    count = config.training.worker_range[1]
    if config.training.workers is None:
        count = gpus_for(1, shards, nodes, device)
    return plan_workers(count, shards, nodes, device=device)


def _build(
    config: DistillConfig, job: CacheJob, storage: Storage, todo: Sequence[int]
) -> Iterator[Record]:
    """Build shards on Ray actors; yield the record of each as it finishes."""
    if not todo:
        return
    # Staged once, before every worker asks for them.
    stage_images(Store(job.store).open_pool(), job.store, job.image_size, job.image_ids)
    where = plan_on_cluster(config, partial(_plan, config, len(todo)))
    say_if_slow("cache", job.computed_in, where)
    threads = config.training.threads or threads_each(cluster_nodes(), where.workers)
    tasks = TaskPool(
        where.workers,
        address=config.address,
        cpus=where.cpus_per_worker,
        gpus=where.gpus_per_worker,
        kept="Finished shards are kept: the same command continues.",
    )
    make = partial(_make_builder, job, storage, threads)
    for _, record in tasks.map_made(make, todo, describe=lambda shard: f"caching shard {shard}"):
        yield record


def _make_builder(job: CacheJob, storage: Storage, threads: int) -> Callable[[int], Record]:
    torch.set_num_threads(threads)
    return partial(CacheWorker(job).build, storage)


def _finished(storage: Storage, spec: CacheSpec) -> dict[int, Record]:
    """Return the records of the shards whose files still have the size that was written."""
    return {
        int(record["shard"]): record
        for record in read_records(storage)
        if record["shard"] < spec.shards and are_whole(record["files"], storage.size)
    }


def _check_size(spec: CacheSpec, limit_gb: float) -> None:
    if spec.bytes > limit_gb * 1e9:
        each = describe_bytes(spec.bytes_per_image / spec.views)
        raise UsageError(
            f"the teacher cache would take {describe_bytes(spec.bytes)} "
            f"({spec.images} images x {spec.views} views x {each}), "
            f"above cache_limit_gb {limit_gb:g}. Use fewer views or layers, cache_precision: int8, "
            "the live teacher, or --force."
        )


def _check_disk(storage: Storage, needed: int) -> None:
    folder = storage.local_path()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UsageError(
            f"the teacher cache needs {describe_bytes(needed)} and '{folder}' has "
            f"{describe_bytes(free)} free."
        )


STAGE = Stage(stages.CACHE, DistillConfig, make_cache, plan_cache)
