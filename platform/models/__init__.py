"""The model zoo: encoders by name, their weights, and what they cost."""

from typing import TYPE_CHECKING

from echostill.platform.lazy import lazy

if TYPE_CHECKING:
    from echostill.platform.models.complexity import gflops, gflops_paper, parameters
    from echostill.platform.models.encoder import Encoder, EncoderOutput
    from echostill.platform.models.loading import (
        LoadReport,
        check_weights,
        load_weights,
        save_weights,
        weights_digest,
    )
    from echostill.platform.models.presets import describe_models, model_names
    from echostill.platform.models.registry import create_encoder

_HOMES = {
    "Encoder": "encoder",
    "EncoderOutput": "encoder",
    "LoadReport": "loading",
    "check_weights": "loading",
    "create_encoder": "registry",
    "describe_models": "presets",
    "gflops": "complexity",
    "gflops_paper": "complexity",
    "load_weights": "loading",
    "model_names": "presets",
    "parameters": "complexity",
    "save_weights": "loading",
    "weights_digest": "loading",
}

__all__ = [
    "Encoder",
    "EncoderOutput",
    "LoadReport",
    "check_weights",
    "create_encoder",
    "describe_models",
    "gflops",
    "gflops_paper",
    "load_weights",
    "model_names",
    "parameters",
    "save_weights",
    "weights_digest",
]

__getattr__ = lazy(__name__, _HOMES)
