"""RapidOCR beside the own finder: the extra ``ocr``.

Its models (PP-OCRv4, Apache-2.0) come in the wheel, and nothing is downloaded. Only what it can
read counts, since it takes much tissue for text; what it reads is kept nowhere. It runs on one
thread: ingest has a worker for each core.
"""

import logging
from functools import cache
from typing import Any

import numpy as np

from echostill.curation.deidentification.text.found import Text
from echostill.platform.errors import UsageError

_SCORE = 1.0  # of what it finds: it keeps its own scores to itself


def require_ocr() -> None:
    """Refuse where RapidOCR is not installed.

    Raises:
        UsageError: It is not, and how to install it.
    """
    _detector()


@cache
def _detector() -> Any:
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError as error:
        raise UsageError(
            f"deidentify.finder=both needs RapidOCR ({error}): pip install 'echostill[ocr]', or "
            "leave finder at own."
        ) from None
    logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)
    return RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)


def find_text_by_ocr(frame: np.ndarray) -> list[Text]:
    """Find text in a frame, uint8 (H, W) or (H, W, 3)."""
    # It takes a picture's channels as OpenCV orders them; a grey one it repeats itself.
    found, _ = _detector()(
        frame if frame.ndim == 2 else np.ascontiguousarray(frame[..., ::-1]),
        use_det=True,
        use_cls=False,
        use_rec=True,
    )
    height, width = frame.shape[:2]
    texts = []
    for corners, _, _ in found or ():
        (x0, y0), (x1, y1) = np.min(corners, axis=0), np.max(corners, axis=0)
        box = (
            max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0),
            min(int(np.ceil(x1)), width), min(int(np.ceil(y1)), height),
        )  # fmt: skip
        if box[0] < box[2] and box[1] < box[3]:
            texts.append(Text(box, _SCORE))
    return texts
