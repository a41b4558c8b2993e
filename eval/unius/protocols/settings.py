"""Settings of the protocols, each value with what it stands on.

[C] is confirmed by the public downstream code of TinyUSFM, [I] is inferred by us.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from echostill.platform.config import Config

IMAGE_SIZE = 224  # of the published models, and of the reference U-Net [C]

Share = Annotated[float, Field(gt=0, le=1)]
Corruption = Literal["speckle", "gain", "depth", "shadow"]
Protocol = Literal["frozen", "published"]


class FrozenSettings(Config):
    """The frozen protocol: probes on the features of an encoder that is not trained. All [I]."""

    split: Literal["sides", "folds"] = Field(
        "sides",
        description="sides trains on train and val and tests on test; folds holds out each fold "
        "of the set in turn, and all its images are tested.",
    )
    neighbours: int = Field(10, ge=1, description="Neighbours of the k-NN probe.")
    few_shot: tuple[int, ...] = Field(
        (5, 10, 25), description="Groups of each class to train on; a set with fewer is left out."
    )
    draws: int = Field(20, ge=1, description="Draws of these groups, averaged.")
    most_training_images: int = Field(
        2000, ge=2, description="Images to train on, at most; chosen by whole groups."
    )


class PublishedSettings(Config):
    """The published protocol: encoder and head are trained together."""

    classification_epochs: int = Field(400, ge=1, description="Epochs of classification [C].")
    segmentation_epochs: int = Field(1000, ge=1, description="Epochs of segmentation [C].")
    warmup_epochs: int = Field(5, ge=0, description="Epochs with a linearly rising rate [C].")
    batch_size: int = Field(
        8, ge=1, description="Images per step [C]; the last batch of an epoch may be smaller [I]."
    )
    learning_rate: float = Field(
        1e-4,
        gt=0,
        description="Peak rate of AdamW, of head and encoder "
        "alike: the published layer decay has no effect [C].",
    )
    last_learning_rate: float = Field(1e-6, ge=0, description="The rate falls linearly to it [C].")
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW [C].")
    flip: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of images flipped, left to right and "
        "upside down; in segmentation only of lesions [C].",
    )
    rotation: float = Field(
        30.0, ge=0, le=180, description="Largest rotation, degrees [C]; after resizing [I]."
    )
    gamma: tuple[float, float] = Field(
        (0.5, 1.9), description="Range of the exponent, segmentation [C]."
    )
    zoom: float = Field(1.3, ge=1, description="Largest enlargement, segmentation [C].")
    contrast: tuple[float, float] = Field(
        (0.5, 2.0), description="Range of the contrast, segmentation [C]."
    )
    change: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Probability of rotation, gamma, zoom and contrast, each, in segmentation [C].",
    )
    head_width: int = Field(128, ge=1, description="Channels of the feature pyramid [C].")
    dice_weight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of soft Dice in the loss; the public loss is cross-entropy alone [C].",
    )
    validate_every: int = Field(
        1,
        ge=1,
        description="Epochs between two looks at the validation "
        "images; the best epoch is tested [C].",
    )


class ProtocolSettings(Config):
    """What is measured of each model on each set."""

    image_size: int | None = Field(
        None,
        ge=16,
        description="Input side of baselines and untrained models in pixels; default "
        "the model's own: 224 for the published ones [C]. Trained models keep theirs.",
    )
    shares: tuple[Share, ...] = Field(
        (1.0,),
        min_length=1,
        description="Shares of the training groups, for label efficiency, "
        "such as [0.1, 0.2, 0.5, 1.0]; each is part of the next larger one.",
    )
    corruptions: tuple[Corruption, ...] = Field(
        (), description="Changes to the test images, for robustness: speckle, gain, depth, shadow."
    )
    corrupted_images: int = Field(500, ge=1, description="Test images that are changed, at most.")
    frozen: FrozenSettings = FrozenSettings()
    published: PublishedSettings = PublishedSettings()

    @field_validator("shares")
    @classmethod
    def _whole(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if 1.0 not in shares or len(set(shares)) < len(shares):
            raise ValueError("expected different shares, one of them 1.0")
        return tuple(sorted(shares))
