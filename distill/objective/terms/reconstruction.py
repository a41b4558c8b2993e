"""The student reconstructs the pixels and the spectrum of the image from its corrupted views."""

from typing import Any

from echostill.distill.objective.outputs import StudentOutput
from echostill.distill.objective.terms.term import Losses, Term, TermLoss
from echostill.platform.config import Config
from echostill.platform.masking.mim import (
    MaskedImageModel,
    Reconstruction,
    ReconstructionSettings,
    joint_losses,
    separated_losses,
    spatial_loss,
)


class ReconstructionKeys(Config):
    """What counts as a good reconstruction."""

    reconstruction: ReconstructionSettings = ReconstructionSettings()


class ReconstructionLoss(TermLoss):
    """Error of the hidden pixels and of the stopped frequencies (see ``masking.mim``)."""

    def __init__(
        self, student: MaskedImageModel, teacher: object, settings: ReconstructionKeys
    ) -> None:
        self.patch_size = student.patch_size
        self.settings = settings.reconstruction

    def losses(self, student: StudentOutput, target: Any) -> Losses:
        """Return the error of each image (B,), and the mean in pixels and in frequency."""
        errors = self._errors(student)
        return Losses(
            (errors.loss,),
            {
                "reconstruction_spatial": errors.spatial.mean(),
                "reconstruction_frequency": errors.frequency.mean(),
            },
        )

    def _errors(self, student: StudentOutput) -> Reconstruction:
        compared = (student.pixels, student.masks, self.patch_size, self.settings)
        if student.views == "spatial":
            return spatial_loss(student.prediction, *compared)
        if student.views == "joint":
            return joint_losses(student.prediction, *compared)
        spatial, frequency = student.prediction.chunk(2)
        return separated_losses(spatial, frequency, *compared)


TERM = Term(
    name="reconstruction",
    summary="Hidden pixels and stopped frequencies with those of the image.",
    settings=ReconstructionKeys,
    build=ReconstructionLoss,
    follows_teacher=False,
)
