"""Colours and transparency of sixteen bits, against the values that were written."""

import io
import struct
import zlib

import numpy as np
import pytest
from openjpeg import encode
from PIL import Image

from echostill.platform.imaging.containers import container_of
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import DecodeError, decode_image
from echostill.platform.imaging.stills import open_stills

RANDOM = np.random.default_rng(0)
HEIGHT, WIDTH = 9, 13


def deep(channels, bits):
    values = RANDOM.integers(0, 2**bits, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    values.reshape(-1)[:2] = 0, 2**bits - 1
    return values


def filtered(rows, step):
    """Apply each of PNG's five filters in turn (PNG specification 9.2)."""
    lines, before = [], np.zeros(rows.shape[1], int)
    for number, row in enumerate(rows.astype(int)):
        left = np.concatenate([np.zeros(step, int), row[:-step]])
        corner = np.concatenate([np.zeros(step, int), before[:-step]])
        guess = left + before - corner
        near = [abs(guess - other) for other in (left, before, corner)]
        paeth = np.where(
            (near[0] <= near[1]) & (near[0] <= near[2]),
            left,
            np.where(near[1] <= near[2], before, corner),
        )
        kind = number % 5
        base = (0, left, before, (left + before) // 2, paeth)[kind]
        lines.append(bytes([kind]) + ((row - base) % 256).astype(np.uint8).tobytes())
        before = row
    return b"".join(lines)


def png(values, orientation=None):
    channels = values.shape[2]
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = np.frombuffer(values.astype(">u2").tobytes(), np.uint8).reshape(HEIGHT, -1)

    def chunk(name, data):
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    exif = Image.Exif()
    exif[0x0112] = orientation or 1
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        + chunk(b"IDAT", zlib.compress(filtered(rows, 2 * channels)))
        + chunk(b"IEND", b"")
    )


def tiff(values, order="<", packed=False, photometric=None, kind=1, big=False):
    """A TIFF in one strip, written tag by tag; ``big`` with offsets of eight bytes."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if packed else data
    bits = values.dtype.itemsize * 8
    start = 16 if big else 8
    fields = [
        (256, [values.shape[1]]), (257, [values.shape[0]]), (258, [bits] * channels),
        (259, [8 if packed else 1]), (262, [photometric if photometric is not None else
        (1 if channels == 1 else 2)]), (273, [start]), (277, [channels]),
        (278, [values.shape[0]]), (279, [len(data)]), (339, [kind] * channels),
    ]  # fmt: skip
    if channels == 4:
        fields.insert(-1, (338, [2]))
    data += b"\0" * (len(data) % 2)
    directory, extra = b"", b""
    size, width = (20, 8) if big else (12, 4)
    behind = start + len(data) + (8 if big else 2) + size * len(fields) + width
    for tag, entries in fields:
        code = 3 if tag not in (273, 279) else 4
        value = struct.pack(f"{order}{len(entries)}{'H' if code == 3 else 'I'}", *entries)
        if len(value) > width:
            place = struct.pack(f"{order}{'Q' if big else 'I'}", behind + len(extra))
            extra, value = extra + value + b"\0" * (len(value) % 2), place
        count = struct.pack(f"{order}{'Q' if big else 'I'}", len(entries))
        directory += struct.pack(f"{order}HH", tag, code) + count + value.ljust(width, b"\0")
    mark = b"II" if order == "<" else b"MM"
    where = start + len(data)
    if big:
        head = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, where)
        count = struct.pack(f"{order}Q", len(fields))
    else:
        head = mark + struct.pack(f"{order}HI", 42, where)
        count = struct.pack(f"{order}H", len(fields))
    return head + data + count + directory + b"\0" * width + extra


def own_range(values):
    low, high = float(values.min()), float(values.max())
    return np.rint((values.astype(np.float64) - low) * (255 / (high - low)))


def pixels_of(data):
    (frame,) = open_stills(SourceFile("a", data=data)).decode([0])
    assert frame.error is None
    assert np.array_equal(decode_image(data), frame.pixels)
    return frame.pixels


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_colours_of_a_png_are_scaled_by_their_range(bits):
    values = deep(3, bits)
    assert np.array_equal(pixels_of(png(values)), own_range(values))


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_of_a_png_lies_over_black(channels, bits):
    values = deep(channels, bits)
    alpha = values[..., -1:].astype(float)
    expected = own_range(values[..., :-1] * (alpha / alpha.max()))
    shown = pixels_of(png(values))
    assert np.abs(shown - expected.reshape(shown.shape)).max() <= 1


def test_an_opaque_deep_grey_is_the_grey_without_transparency():
    grey = deep(1, 12)[..., 0]
    opaque = np.stack([grey, np.full_like(grey, 65535)], axis=2)
    assert np.array_equal(pixels_of(png(opaque)), own_range(grey))


def test_the_orientation_of_a_deep_picture_is_applied():
    values = deep(3, 12)
    turned = pixels_of(png(values, orientation=6))
    assert np.array_equal(turned, np.rot90(own_range(values), -1))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_a_tiff_are_scaled_by_their_range(order, packed, channels):
    values = deep(channels, 12)
    values[..., 3:] = 65535
    shown = pixels_of(tiff(values, order, packed))
    assert np.array_equal(shown, own_range(values[..., :3]))


def test_a_portable_pixmap_of_two_bytes():
    values = deep(3, 12)
    data = f"P6\n{WIDTH} {HEIGHT}\n65535\n".encode() + values.astype(">u2").tobytes()
    assert np.array_equal(pixels_of(data), own_range(values))


@pytest.mark.parametrize("bits", [12, 16])
def test_jpeg_2000_of_more_than_eight_bits(bits):
    values = RANDOM.integers(0, 2**12, (40, 48, 3)).astype(np.uint16)
    data = encode(values, bits_stored=bits, photometric_interpretation=1, use_mct=True,
                  codec_format=1)  # fmt: skip
    assert np.array_equal(pixels_of(data), own_range(values))


def test_eight_bits_are_left_alone():
    values = (RANDOM.integers(0, 100, (HEIGHT, WIDTH, 3))).astype(np.uint8)
    for kind in ("PNG", "TIFF", "PPM"):
        sink = io.BytesIO()
        Image.fromarray(values).save(sink, kind)
        assert np.array_equal(pixels_of(sink.getvalue()), values)


@pytest.mark.parametrize("packed", [False, True])
def test_white_is_zero_in_sixteen_bits(packed):
    values = deep(1, 12)[..., 0]
    shown = pixels_of(tiff(values, packed=packed, photometric=0))
    assert np.array_equal(shown, 255 - own_range(values))
    assert np.array_equal(pixels_of(tiff(values, packed=packed, photometric=1)), own_range(values))


def test_a_large_tiff_is_told_without_a_name():
    values = deep(1, 8)[..., 0].astype(np.uint8)
    data = tiff(values, big=True)
    assert container_of(data[:4096], "IM0001") == "image"
    assert np.array_equal(pixels_of(data), values)
    # Pillow does not read these in the other byte order: said, and not taken for damage.
    data = tiff(values, ">", big=True)
    assert container_of(data[:4096], "IM0001") == "image"
    with pytest.raises(DecodeError, match="stores its pixels in a way that is not read"):
        pixels_of(data)


@pytest.mark.parametrize("kind", [2, 3])
def test_signed_and_floating_values_are_scaled_by_their_range(kind):
    values = RANDOM.integers(-900, 900, (HEIGHT, WIDTH)).astype("<i2" if kind == 2 else "<f4")
    assert np.array_equal(pixels_of(tiff(values, kind=kind)), own_range(values))
