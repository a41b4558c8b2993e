"""Uploaded images: checked, decoded, and turned into the teacher's feature."""

import io
import threading
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from echostill.curation.service.data.state import State
from echostill.curation.service.problems import Problem, conflict
from echostill.platform.errors import EchostillError
from echostill.platform.imaging.images import DecodeError, check_size, decode_image, to_square

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/bmp": "BMP", "image/tiff": "TIFF"}
MAX_PIXELS = 25_000_000
CONCURRENT = 2  # uploads decoded at the same time: each may take 100 MB


def decode_upload(data: bytes, content_type: str) -> np.ndarray:
    """Decode an uploaded image.

    Only the formats above are tried: Pillow has readers of other formats that start programs.

    Returns:
        uint8 (H, W) or (H, W, 3).

    Raises:
        Problem: An unsupported content type, a file of another format, damaged, or too large.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in FORMATS:
        raise Problem(
            415,
            "unsupported-media",
            f"unsupported type '{kind[:100]}': send one of {', '.join(FORMATS)}.",
        )
    try:
        with Image.open(io.BytesIO(data), formats=[FORMATS[kind]]) as image:
            check_size(image.width, image.height, MAX_PIXELS)
        return decode_image(data, MAX_PIXELS)
    except DecodeError as error:
        raise Problem(422, "invalid", f"the uploaded image {error}.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        raise Problem(
            422, "invalid", f"the upload is not a complete {FORMATS[kind]} image."
        ) from None


class TeacherFeatures:
    """The teacher that computed the scores, loaded at the first request."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._teacher: Any = None
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(CONCURRENT)

    def feature(self, data: bytes, content_type: str) -> np.ndarray:
        """Compute the feature of an uploaded image as `echostill score` does, (D,) float32.

        Raises:
            Problem: The upload is not a valid image, or the teacher is not available.
        """
        with self._slots:
            pixels = decode_upload(data, content_type)
            teacher = self._loaded()
            import torch

            square = to_square(pixels, teacher.image_size).astype(np.float32) / 255
            with torch.inference_mode():
                pooled = teacher(torch.from_numpy(square)[None]).pooled.float()
                unit = torch.nn.functional.normalize(pooled, dim=1)
            return np.asarray(unit[0].numpy())

    def _loaded(self) -> Any:
        with self._lock:
            if self._teacher is None:
                self._teacher = self._load()
            return self._teacher

    def _load(self) -> Any:
        table = self._state.scores()
        if table is None:
            raise conflict(
                "the pool is not scored, so there are no features to compare: `echostill score`."
            )
        if table.manifest["fingerprint"].get("weights", {}).get("teacher") is None:
            raise conflict(
                "the scores do not record which teacher computed them: run `echostill score` again."
            )
        from echostill.curation.scoring.teacher_features import teacher_of_scores  # loads torch

        try:
            return teacher_of_scores(self._state.store, table)
        except (EchostillError, OSError, ValueError) as error:
            raise conflict(f"the teacher of the scores is not available: {error}") from None
