"""Data-parallel training: replicas of the task, or one task sharded over the workers (FSDP)."""

import json
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.loop import TrainingState, TrainingTask
from echostill.platform.training.optimisation import parameter_groups
from echostill.platform.training.settings import TrainingSettings


def wrap(task: TrainingTask, settings: TrainingSettings, worker: TrainingWorker) -> nn.Module:
    """Bring a task to its device and prepare it for its workers.

    With sharding 'full' each transformer block is one unit of FSDP: its weights are gathered when
    needed and then freed, and every worker keeps the optimiser state of its own share.

    Args:
        task: Whole, its weights the same on every worker.
        settings: Names the sharding, and whether to compile.
        worker: This worker's device, and how many there are.

    Returns:
        What is called with a batch.
    """
    task.to(worker.device)
    if settings.compile:
        for module in task.compiled():
            module.compile()
    if worker.size == 1:
        return task
    if settings.sharding == "full":
        return _shard(task, worker)
    return _replicate(task, settings, worker)


def _replicate(task: TrainingTask, settings: TrainingSettings, worker: TrainingWorker) -> nn.Module:
    """Keep a copy of the task on each worker.

    Some parameters never get a gradient: an encoder pools its tokens, and no loss of masked image
    modelling looks at the pooled feature, whose norm (`fc_norm`) is therefore left alone. Which
    these are does not change from step to step. On GPUs they are found in the first step; to look
    for them in every step would wait for the device each time. The first step must then be one
    pass: with a micro-batch, torch would end it after the first part. So there, and on CPUs, where
    looking costs little and sums keep their order, they are looked for each time.
    """
    on_gpu = worker.device.type == "cuda"
    once = on_gpu and settings.micro_batch is None
    return nn.parallel.DistributedDataParallel(
        task,
        device_ids=[worker.device] if on_gpu else None,
        find_unused_parameters=not once,
        static_graph=once,
    )


def _shard(task: TrainingTask, worker: TrainingWorker) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(worker.device.type, (worker.size,))
    for module in task.modules():
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, nn.ModuleList | nn.Sequential):
            for block in blocks:
                fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)  # in place
    return task


def whole_state(task: TrainingTask, state: TrainingState) -> dict[str, Any]:
    """Return all that a checkpoint holds, unsharded and on the CPU; every worker must call it.

    It fits any number of workers, and any sharding.
    """
    return {
        "task": {name: _whole(value) for name, value in task.state_dict().items()},
        "optimiser": _whole(state.optimiser),
        "average": _whole(state.average),
        "scaler": state.scaler,
        "step": state.step,
        "history": json.dumps(state.history),
        "norms": dict(state.norms),
        "totals": {name: list(values) for name, values in state.totals.items()},
        "precisions": [tuple(each) for each in state.precisions],
    }


def _whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_whole(inner) for inner in value)
    return value


def shard_state(task: TrainingTask, settings: TrainingSettings, state: TrainingState) -> None:
    """Shard the whole optimiser state of a checkpoint as the task's parameters are sharded."""
    if state.optimiser is None or settings.sharding == "none":
        return
    groups = parameter_groups(task, settings.weight_decay, settings.layer_decay)
    parameters = [parameter for group in groups for parameter in group["params"]]
    moments = {
        index: {
            name: _like(value, parameters[index]) if value.ndim else value
            for name, value in own.items()
        }
        for index, own in state.optimiser["state"].items()
    }
    state.optimiser = {**state.optimiser, "state": moments}


def _like(value: Tensor, parameter: nn.Parameter) -> Tensor:
    if not isinstance(parameter, DTensor):
        return value
    whole: Tensor = distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements
    )
    return whole
