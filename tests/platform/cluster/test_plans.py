"""Plans against brute force: every way in which Ray could place the workers is tried."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostill.platform.cluster.nodes import Node
from echostill.platform.cluster.plans import (
    NodesMissingError,
    gpus_for,
    plan_replicas,
    plan_workers,
    runs_at_once,
)
from echostill.platform.errors import UsageError

CLUSTERS = {
    "a laptop": [Node(2)],
    "1 + 2 + 2": [Node(1), Node(2), Node(2)],
    "2 + 2 + 2": [Node(2)] * 3,
    "a head without CPUs": [Node(0), Node(2), Node(2)],
    "ones": [Node(1)] * 4,
    "8 GPUs": [Node(16, 8)],
    "8, 2 and 0 GPUs": [Node(16, 8), Node(4, 2), Node(8)],
    "1 GPU": [Node(4, 1)],
    "a head without CPUs, 8 GPUs": [Node(0), Node(32, 8)],
    "1 GPU each": [Node(2, 1)] * 3,
    "more GPUs than CPUs": [Node(4, 8), Node(2)],
}
ANY = st.lists(
    st.builds(Node, st.sampled_from([0, 0.5, 1, 2, 3, 4, 8]), st.integers(0, 3)),
    min_size=1,
    max_size=4,
)


class Machine:
    """A node as Ray fills it: CPUs as one number, and each GPU for itself; in ten-thousandths."""

    def __init__(self, node):
        self.cpus = round(node.cpus * 10_000)
        self.gpus = [10_000] * int(node.gpus)

    def take(self, cpus, gpus=0.0):
        """Place one worker; False where it does not fit."""
        cpus, gpus = round(cpus * 10_000), round(gpus * 10_000)
        room = [at for at, free in enumerate(self.gpus) if gpus <= free]
        if cpus > self.cpus or (gpus and not room):
            return False
        assert gpus <= 10_000
        self.cpus -= cpus
        if gpus:
            self.gpus[room[0]] -= gpus
        return True


def placements(nodes, workers, cpus, gpus):
    """All ways to place the workers, as the CPUs that each node has left."""
    left = []
    for node in nodes:
        machine, own = Machine(node), []
        while len(own) <= workers:
            own.append(machine.cpus / 10_000)
            if not machine.take(cpus, gpus):
                break
        left.append(own)
    for counts in itertools.product(*(range(len(own)) for own in left)):
        if sum(counts) == workers:
            yield [own[count] for own, count in zip(left, counts, strict=True)]


def planned(call, *arguments, **options):
    """The plan, or the error that refuses it."""
    try:
        return call(*arguments, **options)
    except UsageError as error:
        return error


def is_clean(gpus):
    return gpus in (0.0, 1.0) or abs(round(1 / gpus) * gpus - 1) < 0.01


def check_pool(nodes, plan, units):
    """What holds for every plan of a pool, by brute force."""
    assert 1 <= plan.workers <= units
    assert is_clean(plan.gpus_per_worker)
    ways = list(placements(nodes, plan.workers, plan.cpus_per_worker, plan.gpus_per_worker))
    assert ways, "the workers find no place"
    assert all(max(free) > 0 or not plan.decoders for free in ways)
    if plan.decoders:
        assert all(max(free) >= 1 for free in ways), "no decoder finds a place"
        assert max(sum(int(cpus) for cpus in free) for free in ways) >= plan.decoders


@pytest.mark.parametrize("device", ["auto", "cpu", "gpu"])
@pytest.mark.parametrize("name", CLUSTERS)
def test_one_to_nine_shards_are_placed_or_refused_in_words(name, device):
    nodes = CLUSTERS[name]
    for shards, requested, decoders in itertools.product(
        range(1, 10), (None, 1, 2, 3, 5, 8, (1, 6), (2, 4)), (None, 0, 2)
    ):
        plan = planned(plan_workers, requested, shards, nodes, device=device, decoders=decoders)
        if isinstance(plan, UsageError):
            assert any(word in str(plan) for word in ("ask for", "decoders=0", "compute_on=cpu"))
            continue
        check_pool(nodes, plan, shards)
        on_gpu = device != "cpu" and any(node.gpus for node in nodes)
        assert (plan.gpus_per_worker > 0) == on_gpu


@given(ANY, st.sampled_from(["auto", "cpu"]), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_every_mix_of_nodes_is_placed_or_refused(nodes, device, workers, shards, apart):
    decoders = None if apart else 0
    plan = planned(plan_workers, workers, shards, nodes, device=device, decoders=decoders)
    if isinstance(plan, UsageError):
        # Refused only where even workers of a hundredth of a CPU, with a decoder, find no place.
        count = min(workers, shards)
        gpus = device == "auto" and any(node.gpus and node.cpus for node in nodes)
        part = 10_000 // 16 / 10_000 if gpus else 0.0
        ways = list(placements(nodes, count, 0.01, part))
        crowded = count > 4 * max(sum(node.cpus for node in nodes), 1)
        decode = gpus and apart and not all(max(free) >= 1 for free in ways)
        assert crowded or not ways or decode
        return
    check_pool(nodes, plan, shards)


@given(
    ANY,
    st.sampled_from(["auto", "cpu"]),
    st.tuples(st.integers(1, 4), st.integers(0, 4)),
    st.integers(1, 2),
    st.sampled_from([None, 1, 3]),
)
def test_every_bundle_of_a_training_fits_on_a_node(nodes, device, workers, at_once, threads):
    fewest, most = workers[0], sum(workers)
    gpus = sum(Machine(node).take(0.01, 1.0) for node in nodes)  # nodes where one fits
    plan = planned(
        plan_replicas, fewest, most, nodes, device=device, threads=threads, at_once=at_once
    )
    if isinstance(plan, NodesMissingError):
        assert not any(node.cpus for node in nodes)
        return
    if isinstance(plan, UsageError):
        on_gpu = gpus > 0 and device == "auto"
        assert ("training.workers=" in str(plan)) == ("compute_on=cpu" in str(plan)) == on_gpu
        assert not list(placements(nodes, fewest * at_once, 0.01, float(on_gpu)))
        return
    assert plan.workers == most
    assert plan.threads == (threads or plan.threads)
    assert plan.gpus_per_worker in (0.0, 1.0)
    assert (plan.gpus_per_worker > 0) == (device == "auto" and gpus > 0)
    bundle = plan.cpus_per_worker, plan.gpus_per_worker
    assert list(placements(nodes, fewest * at_once, *bundle))
    assert plan.cpus_per_worker <= plan.threads or plan.gpus_per_worker


@pytest.mark.parametrize(
    ("name", "workers", "cpus", "threads"),
    [
        ("a laptop", 1, 2, 2),
        ("a laptop", 2, 1, 1),
        ("a laptop", 4, 0.5, 1),
        ("1 + 2 + 2", 1, 2, 2),
        ("1 + 2 + 2", 2, 2, 2),
        ("1 + 2 + 2", 3, 1, 1),
        ("1 + 2 + 2", 5, 1, 1),
        ("2 + 2 + 2", 2, 2, 2),
        ("2 + 2 + 2", 3, 2, 2),
        ("a head without CPUs", 1, 2, 2),
        ("ones", 1, 1, 1),
    ],
)
def test_cpus_are_shared_out_node_by_node(name, workers, cpus, threads):
    plan = plan_replicas(workers, workers, CLUSTERS[name])
    assert (plan.workers, plan.cpus_per_worker, plan.threads) == (workers, cpus, threads)


def test_threads_that_are_fixed_do_not_follow_the_nodes():
    """They enter the results; a node with fewer CPUs computes the same in more time."""
    for nodes in CLUSTERS.values():
        plan = plan_replicas(1, 1, nodes, device="cpu", threads=2)
        assert plan.threads == 2
        assert plan.cpus_per_worker == min(max(node.cpus for node in nodes), 2)


def test_too_few_gpus_for_a_training_are_said():
    nodes = [Node(32, 4), Node(32)]
    with pytest.raises(UsageError, match=r"8 training workers need a GPU each.* 4 on 1 node of 32"):
        plan_replicas(8, 8, nodes)
    assert plan_replicas(8, 8, nodes, device="cpu").gpus_per_worker == 0
    assert plan_replicas(2, 8, nodes).gpus_per_worker == 1  # elastic: 4 now, more as nodes come
    with pytest.raises(NodesMissingError) as missing:
        plan_replicas(8, 8, nodes, device="gpu")
    assert (missing.value.workers, missing.value.gpus) == (8, 1.0)


def test_one_shard_takes_one_gpu_of_eight_and_nine_share_them():
    for shards in range(1, 9):
        plan = plan_workers(None, shards, [Node(16, 8)], device="auto")
        assert (plan.workers, plan.gpus_per_worker) == (shards, 1.0)
    assert plan_workers(9, 9, [Node(16, 8)], device="auto").gpus_per_worker == 0.5
    assert plan_workers(3, 9, [Node(16, 1)], device="auto").gpus_per_worker == 0.3333
    with pytest.raises(UsageError, match="ask for at most 16, or use compute_on=cpu"):
        plan_workers(17, 100, [Node(16, 1)], device="auto")


def test_a_cluster_without_nodes_says_what_is_missing():
    for nodes in ([], [Node(0)]):
        with pytest.raises(NodesMissingError, match="no node"):
            plan_workers(None, 4, nodes)
        with pytest.raises(NodesMissingError, match="no node"):
            plan_replicas(1, 1, nodes)
    with pytest.raises(NodesMissingError, match="compute_on is gpu, and there is none"):
        plan_workers(None, 4, [Node(2)], device="gpu")


def test_pools_grow_and_shrink_between_their_bounds():
    plan = plan_workers((1, 6), 100, [Node(1)])
    assert (plan.fewest, plan.workers, plan.most) == (1, 1, 6)
    assert (
        plan_workers((1, 6), 3, [Node(1)]).most,
        plan_workers((1, 6), 9, [Node(4)]).workers,
    ) == (3, 4)
    assert plan_workers(4, 100, [Node(2)]).most is None
    assert "(from 1 to 6)" in plan.describe()


@pytest.mark.parametrize(
    ("name", "runs", "workers", "device", "at_once"),
    [
        ("a laptop", 3, 1, "auto", 2),
        ("1 + 2 + 2", 9, 2, "auto", 2),
        ("8 GPUs", 9, 2, "auto", 4),
        ("8, 2 and 0 GPUs", 20, 1, "auto", 10),
        ("8, 2 and 0 GPUs", 40, 1, "cpu", 28),
        ("1 GPU", 2, 4, "auto", 1),
    ],
)
def test_runs_are_trained_side_by_side_where_there_is_room(name, runs, workers, device, at_once):
    assert runs_at_once(runs, workers, CLUSTERS[name], device=device) == at_once


@given(ANY, st.sampled_from(["auto", "cpu"]), st.integers(1, 4), st.integers(1, 6))
def test_trainings_without_a_number_of_workers_share_all_gpus(nodes, device, runs, most):
    each = gpus_for(runs, most, nodes, device)
    machines = [Machine(node) for node in nodes if node.cpus]
    there = sum(len(machine.gpus) for machine in machines) if device == "auto" else 0
    if there < runs:
        assert each == 1  # on CPUs, or too few: the plan says so
        return
    there = sum(machine.take(0.01, 1.0) for machine in machines for _ in range(3))
    assert each == min(there // runs, most)
    plan = plan_replicas(each, each, nodes, device=device, at_once=runs)
    assert list(placements(nodes, each * runs, plan.cpus_per_worker, plan.gpus_per_worker))


def test_decoding_and_computing_are_sized_apart():
    plan = plan_workers(None, 100, CLUSTERS["8, 2 and 0 GPUs"], device="auto", decoders=None)
    assert (plan.workers, plan.gpus_per_worker) == (10, 1.0)
    assert plan.decoders == 17  # 16 - 8, 4 - 2 and 8 CPUs are left, half a CPU of them free
    assert "17 decoder(s) x 1 CPU beside them (1.7 per GPU)" in plan.describe()
