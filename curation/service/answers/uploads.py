"""Images that callers send: checked, decoded, and turned into the teacher's feature."""

import io
import json
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
AT_ONCE = 2  # uploads decoded side by side: each may take 100 MB


def decode_upload(data: bytes, content_type: str) -> np.ndarray:
    """Decode an uploaded image.

    Only the formats named above are tried: Pillow knows others whose readers start programs.

    Returns:
        uint8 (H, W) or (H, W, 3).

    Raises:
        Problem: Another content type, another format than it says, damaged, or too many pixels.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in FORMATS:
        raise Problem(
            415, "unsupported-media", f"send one of {', '.join(FORMATS)}, not '{kind[:100]}'."
        )
    try:
        with Image.open(io.BytesIO(data), formats=[FORMATS[kind]]) as image:
            check_size(image.width, image.height, MAX_PIXELS)
        return decode_image(data, MAX_PIXELS)
    except DecodeError as error:
        raise Problem(422, "invalid", f"the upload {error}.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        raise Problem(422, "invalid", f"the upload is not a whole {FORMATS[kind]}.") from None


class TeacherFeatures:
    """The teacher that the scores were made with, loaded when it is first asked for."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._teacher: Any = None
        self._lock = threading.Lock()
        self._turn = threading.Semaphore(AT_ONCE)

    def feature(self, data: bytes, content_type: str) -> np.ndarray:
        """Compute the feature of an uploaded image as `echostill score` does, (D,) float32.

        Raises:
            Problem: The upload cannot be used, or the teacher is not at hand.
        """
        with self._turn:
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
            raise conflict("nothing is scored yet, so there is nothing to compare with.")
        saved = json.loads(table.storage.read("configuration.json"))
        wanted = table.manifest["fingerprint"].get("weights", {}).get("teacher")
        if wanted is None:
            raise conflict("the scores do not say which teacher made them.")
        from echostill.platform.config import ModelsConfig, validate
        from echostill.platform.models.weights import find_teacher  # loads torch

        try:
            config = validate(
                ModelsConfig, {"store": self._state.store.root, "teacher": saved["teacher"]}
            )
            found = find_teacher(config)
        except (EchostillError, KeyError, OSError) as error:
            raise conflict(f"the teacher of the scores is not at hand: {error}") from None
        if found.digest != wanted:
            raise conflict(
                f"the weights at '{found.path}' are not those that the scores were made with."
            )
        return found.load()
