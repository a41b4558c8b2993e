"""One item of a download to pictures with their masks, or the reason why not."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from echostill.eval.unius.download import Download
from echostill.eval.unius.items import Item
from echostill.eval.unius.layouts import DownloadLayout
from echostill.eval.unius.masks import read_layer
from echostill.platform.imaging.containers import open_clip
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import DecodeError, decode_image, encode_png

_PLAIN = {"PNG": ".png", "JPEG": ".jpg"}
_ORIENTATION = 0x0112  # of EXIF


@dataclass(frozen=True)
class Picture:
    """An image as it is written: its pixels, its file, its mask."""

    frame: int | None  # of a volume
    pixels: np.ndarray  # uint8 (H, W) or (H, W, 3)
    data: bytes
    suffix: str
    mask: np.ndarray | None  # uint8 (H, W)


def read_item(
    download: Download, layout: DownloadLayout, item: Item, structures: dict[str, int]
) -> list[Picture]:
    """Read an item: one picture, or one for each frame.

    A PNG or JPEG file that every program shows alike is kept as it is; anything else becomes a PNG
    of the same pixels.

    Raises:
        DecodeError: The image or a file of its mask is damaged, missing or of another size, or the
            mask has a value that is no structure's.
    """
    data = download.read(item.file)
    frames = _frames(item.file, data, layout.images.reads)
    height, width = frames[0].shape[:2]
    masks = _masks(download, layout, item, (len(frames), height, width))
    if masks is not None:
        if layout.inside_image:
            masks = np.where(_lit(frames), masks, 0).astype(np.uint8)
        odd = sorted(set(np.unique(masks).tolist()) - {0, *structures.values()})
        if odd:
            known = ", ".join(str(value) for value in structures.values())
            raise DecodeError(f"has a mask with the value {odd[0]}: 0 and {known} are expected")
    whole = _kept(data) if layout.images.reads == "still" else ""
    several = layout.images.reads == "frames"
    return [
        Picture(
            index if several else None,
            pixels,
            data if whole else encode_png(pixels),
            whole or ".png",
            None if masks is None else masks[index],
        )
        for index, pixels in enumerate(frames)
    ]


def _frames(name: str, data: bytes, reads: str) -> list[np.ndarray]:
    if reads == "still":
        return [decode_image(data)]
    clip = open_clip(SourceFile(name, data=data))
    frames = []
    for frame in clip.decode(range(clip.frames)):
        if frame.pixels is None:
            raise frame.error or DecodeError(f"has a damaged frame {frame.index}")
        frames.append(frame.pixels)
    if len(frames) != clip.frames:
        raise DecodeError(f"holds {len(frames)} of the {clip.frames} frames that it states")
    if reads == "frames":
        return frames
    if len(frames) == 1:  # the channels were stored as such
        return frames
    if len(frames) != 3 or frames[0].ndim != 2:
        raise DecodeError(f"has {len(frames)} slices where three colour channels are expected")
    return [np.stack(frames, axis=-1)]


def _masks(
    download: Download, layout: DownloadLayout, item: Item, shape: tuple[int, int, int]
) -> np.ndarray | None:
    """Paint the layers over each other; None where the item has no mask."""
    without = {erratum.layer for erratum in item.errata if erratum.does == "without"}
    parts = {part.layer.name: part for part in item.layers}
    for layer in layout.masks:
        if layer.name in without:
            return None  # what is left would be a mask that says: not here
        if layer.needed and layer.name not in parts:
            raise DecodeError(f"has no mask ({layer.name})")
    if not parts:
        return None
    painted = np.zeros(shape, dtype=np.uint8)
    for layer in layout.masks:
        if layer.name in parts:
            one = read_layer(download, parts[layer.name], shape)
            painted = np.where(one > 0, one, painted)
    return painted


def _lit(frames: list[np.ndarray]) -> np.ndarray:
    """Return where the frames are not 0, bool (frames, H, W)."""
    return np.stack([frame > 0 if frame.ndim == 2 else frame.any(axis=-1) for frame in frames])


def _kept(data: bytes) -> str:
    """Return the suffix of a file that is kept as it is; empty where it is written anew."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format not in _PLAIN or image.mode not in ("L", "RGB"):
            return ""
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        animated = getattr(image, "n_frames", 1) > 1
        return "" if turned or animated or "transparency" in image.info else _PLAIN[image.format]
