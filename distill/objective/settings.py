"""Settings of the distillation objective, and its presets by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, model_validator

from echostill.platform.config import Config
from echostill.platform.masking.masks import MaskSettings, SpatialMask
from echostill.platform.masking.mim import ReconstructionSettings

Preset = Literal["tinyusfm", "mae-lite", "fixed-weight", "mim-only", "usfm-pretrain"]
Weighting = Literal["linear", "relu", "softmax", "batch-normalised", "fixed"]
Views = Literal["separated", "spatial", "joint"]

# mae-lite is the closest public recipe (MAE-Lite's distillation, as in the same first author's
# MacDunno/IUGC2025): one view with three quarters of the patches hidden, normalised pixels, and the
# attention logits of the last block. Its patches are mean-filled here, where MAE drops them.
# usfm-pretrain is the teacher's own recipe: both masks on one input.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tinyusfm": {},
        "mae-lite": {
            "views": "spatial",
            "masks": {"spatial": {"ratio": 0.75, "block_size": 16}},
            "reconstruction": {"pixel": "normalised-mse"},
            "token_weight": 0.0,
            "attention_weight": 1.0,
            "weighting": "fixed",
        },
        "fixed-weight": {"weighting": "fixed"},
        "mim-only": {"distil": False},
        "usfm-pretrain": {"distil": False, "views": "joint"},
    }
)


class ObjectiveSettings(Config):
    """The distillation objective. A preset fills in whatever is not given beside it."""

    preset: Preset = Field("tinyusfm", description="Named starting point of the settings below.")
    views: Views = Field(
        "separated",
        description="One view per mask, the spatial one alone, or both masks on one input.",
    )
    masks: MaskSettings | None = Field(
        None, description="Masks of this objective; default those of the stage."
    )
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    distil: bool = Field(True, description="Follow a teacher; without, masked image modelling.")
    beta: float = Field(1.0, ge=0, description="Weight of distillation against reconstruction.")
    token_weight: float = Field(1.0, ge=0, description="Weight of matched tokens.")
    layers: tuple[int, ...] | None = Field(
        None, description="Student blocks whose tokens are matched; default each third."
    )
    teacher_layers: tuple[int, ...] | None = Field(
        None, description="Teacher blocks they are matched to; default each third."
    )
    distance: Literal["mse", "cosine"] = Field("mse", description="Distance of matched tokens.")
    target: Literal["standardised", "layer-norm"] = Field(
        "standardised",
        description="Teacher tokens as they are matched: normalised, and then each channel brought "
        "to mean 0 and variance 1 over the data, or normalised alone.",
    )
    attention_weight: float = Field(
        0.0, ge=0, description="Weight of matched attention logits (MAE-Lite)."
    )
    relation_weight: float = Field(
        0.0, ge=0, description="Weight of matched token relations (TinyMIM)."
    )
    attention_layers: tuple[int, ...] | None = Field(
        None, description="Student blocks whose attention is matched; default the last."
    )
    attention_teacher_layers: tuple[int, ...] | None = Field(
        None, description="Teacher blocks it is matched to; default the last."
    )
    consistency: Literal["last", "each"] = Field(
        "last", description="One weight from the teacher's last features, or one per matched layer."
    )
    level: Literal["sample", "token"] = Field("sample", description="What a weight belongs to.")
    centring: bool = Field(True, description="Subtract the running mean feature first.")
    momentum: float = Field(0.99, ge=0, lt=1, description="Memory of the running mean.")
    weighting: Weighting = Field("linear", description="From consistency to weight.")
    temperature: float = Field(0.1, gt=0, description="Of the softmax weighting.")
    fixed_weight: float = Field(1.0, ge=0, description="The weight when it is fixed.")
    combination: Literal["sum", "balance"] = Field("sum", description="How the losses add up.")

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        name = values.get("preset", "tinyusfm")
        known = PRESETS.get(name, {}) if isinstance(name, str) else {}
        # Sections become models here: a preset given in Python is validated strictly.
        filled = {key: _section(key, value) for key, value in known.items()}
        return {**filled, **values}

    @model_validator(mode="after")
    def _parts_fit(self) -> "ObjectiveSettings":
        if self.combination == "balance" and self.weighting == "softmax":
            raise ValueError(
                "combination 'balance' needs weights in [0, 1] and those of 'softmax' exceed 1: "
                "use weighting 'linear', 'relu' or 'batch-normalised', or combination 'sum'"
            )
        if self.combination == "balance" and self.weighting == "fixed" and self.fixed_weight > 1:
            raise ValueError("combination 'balance' needs a fixed_weight in [0, 1]")
        for own, other in (
            ("layers", "teacher_layers"),
            ("attention_layers", "attention_teacher_layers"),
        ):
            first, second = getattr(self, own), getattr(self, other)
            if first and second and len(first) != len(second):
                raise ValueError(f"{own} and {other} must be equally many")
        if self.distil and self.views != "separated" and self.weighting != "fixed":
            raise ValueError(
                f"views '{self.views}' is one view, which has no consistency with another: use "
                "views 'separated', or weighting 'fixed'"
            )
        if self.distil and not (self.token_weight or self.attention_weight or self.relation_weight):
            raise ValueError(
                "nothing of the teacher is matched: token_weight, attention_weight and "
                "relation_weight are all 0 (distil=false trains without a teacher)"
            )
        if self.consistency == "each" and not self.token_weight:
            raise ValueError("consistency 'each' weighs matched tokens, and token_weight is 0")
        return self

    @property
    def matches_attention(self) -> bool:
        """Whether attention logits or relations are matched."""
        return self.distil and bool(self.attention_weight or self.relation_weight)


def _section(key: str, value: Any) -> Any:
    if key == "masks":
        return MaskSettings(spatial=SpatialMask(**value["spatial"]))
    if key == "reconstruction":
        return ReconstructionSettings(**value)
    return value
