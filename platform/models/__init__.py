"""The model zoo: encoders by name, their weights, and what they cost."""

from echostill.platform.models.complexity import (
    describe_models,
    gflops,
    gflops_paper,
    parameters,
)
from echostill.platform.models.encoder import Encoder, EncoderOutput
from echostill.platform.models.loading import (
    LoadReport,
    load_weights,
    save_weights,
    weights_digest,
)
from echostill.platform.models.registry import create_encoder, model_names

__all__ = [
    "Encoder",
    "EncoderOutput",
    "LoadReport",
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
