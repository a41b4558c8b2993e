"""Verification of a teacher cache: some of its views are computed again."""

from dataclasses import replace

import numpy as np
import torch

from echostill.distill.cache.building import CacheWorker
from echostill.distill.cache.stage import coreset_job, open_cache
from echostill.distill.cache.teacher_cache import POOLED, TeacherCache, quantisation_error, restore
from echostill.distill.settings import DistillConfig
from echostill.platform.errors import EchostillError
from echostill.platform.seeding import stream

VERIFIED = 32  # views that are computed again
# Computing a view again in another batch moves its numbers by rounding, beyond quantisation;
# relative to a token's largest number.
ROUNDING = {"float32": 1e-4, "float16": 2.0**-8, "bfloat16": 2.0**-5}


def verify_cache(config: DistillConfig, views: int = VERIFIED) -> str:
    """Recompute a sample of views with the live teacher and compare them with the cache.

    Returns:
        The largest differences, as text.

    Raises:
        UsageError: The cache is of another teacher, transform, mask or set of images.
        EchostillError: A cached value differs from the teacher's by more than quantisation can.
    """
    job = coreset_job(config)
    opened = open_cache(config, job.teacher, job.image_ids)
    job, cache = replace(job, computed_in=opened.computed_in), TeacherCache(opened.folder)
    rows = stream(job.view_seed, "verify").choice(
        job.spec.images * job.spec.views, min(views, job.spec.images * job.spec.views), False
    )
    places, numbers = np.divmod(np.sort(rows), job.spec.views)
    worker = CacheWorker(job)
    live = worker.outputs(places, numbers)
    kept = cache.rows([job.image_ids[row] for row in places], numbers.tolist(), job.spec.outputs)
    worst, largest = 0.0, 0.0
    for name in (POOLED, *job.spec.outputs):
        values = torch.from_numpy(live[name])
        if name == POOLED:
            difference_, allowed = (kept.pooled - values).abs(), torch.zeros(())
        else:
            ranges = kept.ranges[name]
            difference_ = (restore(kept.tokens[name], ranges) - values).abs()
            allowed = quantisation_error(values, ranges)
        slack = ROUNDING[job.computed_in] * values.abs().amax(dim=-1, keepdim=True)
        share = float((difference_ / (allowed + slack)).max())
        worst, largest = max(worst, share), max(largest, float(difference_.max()))
        if share > 1:
            raise EchostillError(
                f"the teacher cache '{cache.folder}' is wrong: {name} differs by up to "
                f"{float(difference_.max()):.3g}, {share:.1f} times what {job.spec.precision} "
                "explains. Delete that folder and make it anew with `echostill cache`."
            )
    return (
        f"{len(rows)} views recomputed: largest difference {largest:.3g}, "
        f"{worst:.0%} of what {job.spec.precision} allows"
    )
