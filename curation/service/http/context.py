"""What the routes need to answer: one context per application."""

from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Query, Request

from echostill.curation.service.answers.uploads import TeacherFeatures
from echostill.curation.service.data.pages import SampleFinder
from echostill.curation.service.data.review import ReviewTable
from echostill.curation.service.data.state import State
from echostill.curation.service.http.security import Meters
from echostill.curation.service.jobs.queue import FINISHED, Jobs
from echostill.curation.service.jobs.withdrawals import Withdrawals
from echostill.curation.service.sql.workers import SqlPool


@dataclass
class ServiceContext:
    """Everything that answers are computed from.

    Attributes:
        state: the mapped store.
        finder: filters and sorts samples.
        review: the frames that were held back.
        sql: worker processes for queries.
        teacher: computes the features of uploads.
        meters: metrics for Prometheus.
        withdrawals: what is, and was, withdrawn.
        jobs: the queue of picks; set when the application starts, like the limiters.
        sql_limiter, stream_limiter: threads of their own for SQL, so that waiting queries never
            occupy those of other requests.
        sql_waiting: queries that wait for a worker or run.
    """

    state: State
    finder: SampleFinder
    review: ReviewTable
    sql: SqlPool
    teacher: TeacherFeatures
    meters: Meters
    withdrawals: Withdrawals
    jobs: Jobs = field(init=False)
    sql_limiter: CapacityLimiter = field(init=False)
    stream_limiter: CapacityLimiter = field(init=False)
    sql_waiting: int = 0

    def picking(self) -> set[str]:
        """Names of the coresets that jobs are picking, or will."""
        return {job.name for job in self.jobs.latest() if job.state not in FINISHED}

    def measure(self) -> None:
        """Update the gauges."""
        ready = self.state.ready
        self.meters.ready.set(int(ready))
        self.meters.images.set(len(self.state.catalogue) if ready else 0)
        for state, count in self.jobs.counts().items():
            self.meters.jobs.labels(state).set(count)

    def close(self) -> None:
        """Stop everything that runs."""
        self.jobs.close()
        self.sql.close()
        self.state.close()


async def _context_of(request: Request) -> ServiceContext:
    # A coroutine needs no thread.
    context: ServiceContext = request.app.state.context
    return context


Context = Annotated[ServiceContext, Depends(_context_of)]
CoresetName = Annotated[
    str | None,
    Query(
        max_length=200,
        description="Name of a coreset; if left out, 'default', else the newest one.",
    ),
]
