"""Stored values of one DICOM frame at a time, by the decoder that suits its transfer syntax."""

import io
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from echostill.platform.imaging.dicom.codestream import (
    Codestream,
    bare_codestream,
    check_size_inside,
    lacks_end,
    read_codestream,
    with_end,
)
from echostill.platform.imaging.dicom.encapsulation import (
    Piece,
    all_fragments,
    read_pieces,
    split_frames,
)
from echostill.platform.imaging.dicom.file import DicomFile, PixelElement
from echostill.platform.imaging.dicom.isolation import DecoderError, IsolatedDecoder
from echostill.platform.imaging.dicom.pixels import HALVED, PixelFormat, without_other_bits
from echostill.platform.imaging.dicom.syntaxes import CRASHING, choose_decoder, choose_plugin
from echostill.platform.imaging.images import DecodeError

_HEAD = 2**16  # bytes of a frame that hold its codestream's own header
# Stands behind a JPEG that lost its end: one that is whole is decoded the same without it.
_FILLING = bytes(range(0xFE, 0, -1)) * 4
_NEAR = 8  # grey levels that lossy compression puts between channels of a grey pixel
_SURE = 0.8  # share of a picture that is grey in one reading and not in the other

_isolated = IsolatedDecoder()


class Values(NamedTuple):
    """A decoded frame.

    Attributes:
        array: (H, W) or (H, W, 3), as stored.
        photometric: What the values are; a codestream may know better than the header.
        bits: Bits that a value has.
    """

    array: np.ndarray
    photometric: str
    bits: int


class FrameDecoder:
    """Decodes the frames of one file.

    Attributes:
        held: Frames that the pixel data holds, whatever the header states.
    """

    def __init__(
        self,
        stream: BinaryIO,
        file: DicomFile,
        pixels: PixelElement,
        layout: PixelFormat,
        stated: int,
    ) -> None:
        """Find the frames.

        Raises:
            DecodeError: The transfer syntax is not read, or no frame is there.
        """
        self._syntax, self._pixels, self._layout = file.syntax, pixels, layout
        self._decoder = choose_decoder(file.syntax)
        self._frames: list[list[Piece]] = []
        if not pixels.encapsulated:
            self.held = _native_frames(pixels, layout, stated)
            return
        extended = file.dataset.get("ExtendedOffsetTable") or b""
        offsets = struct.unpack(f"<{len(extended) // 8}Q", extended[: len(extended) // 8 * 8])
        only_one = file.syntax == RLELossless
        self._frames = split_frames(
            stream, pixels.place, stated, offsets, one_fragment_each=only_one
        )
        self.held = len(self._frames)
        # A decoder that is not installed is the file's failure, not that of each frame.
        first = first_codestream(stream, pixels, stated)
        choose_plugin(self._decoder, layout.stored if first is None else first.precision)

    def decode(self, stream: BinaryIO, index: int) -> Values:
        """Decode one frame from the file (or the bytes) that the pixel data lies in.

        Raises:
            DecodeError: The frame is damaged, cut off, or not what the header says.
        """
        layout = self._layout
        if not self._pixels.encapsulated:
            stream.seek(self._pixels.place.offset)
            array = self._native(stream, index)
            return Values(
                without_other_bits(array, layout, layout.allocated),
                layout.photometric,
                layout.stored,
            )
        data = read_pieces(stream, self._frames[index])
        if not data:
            raise DecodeError("is empty: its fragment of the pixel data has no bytes")
        if self._syntax == RLELossless:
            options = {**self._options(layout.samples), "correct_unused_bits": False}
            array, photometric = self._plain(data, options)
            held, bits = layout.allocated, layout.stored
            return Values(without_other_bits(array, layout, held), photometric, bits)
        data = bare_codestream(data)
        inside = read_codestream(data)
        check_size_inside(inside, layout.rows, layout.columns)
        self._check_components(inside)
        array, photometric = self._whole(data, inside)
        bits = min(layout.stored, inside.precision)
        return Values(without_other_bits(array, layout, inside.precision), photometric, bits)

    def _native(self, stream: BinaryIO, index: int) -> np.ndarray:
        stand_in = {"YBR_PARTIAL_422": "YBR_FULL_422"}.get(self._layout.photometric)
        options = self._options(self._layout.samples)
        if stand_in:
            options["photometric_interpretation"] = stand_in
        array, _ = self._decoder.as_array(
            stream,
            index=index,
            raw=True,
            validate=False,
            **{**options, "number_of_frames": self.held},
            pixel_vr=self._pixels.representation,
            correct_unused_bits=False,
        )
        # Of a big endian file the values are in that order.
        native: np.ndarray = array.astype(array.dtype.newbyteorder("="), copy=False)
        return native

    def _check_components(self, inside: Codestream) -> None:
        # One component under a header of colours is a grey picture; more than it says are no grey.
        if inside.components not in {1, self._layout.samples} & {1, 3}:
            raise DecodeError(
                f"holds a compressed picture of {inside.components} components, and the header "
                f"says {self._layout.samples} (SamplesPerPixel)"
            )

    def _whole(self, data: bytes, inside: Codestream) -> tuple[np.ndarray, str]:
        """Decode a frame, also one that lost the marker of its end, if all of its data is there.

        JPEG decoders fill up what is missing and say nothing, so such a frame is decoded with and
        without a filling: where the picture depends on it, the data has been cut off.
        """
        if not lacks_end(data):
            return self._compressed(data, inside)
        # A fragment of odd length ends with a byte that is not the frame's.
        unpadded = data.removesuffix(b"\0")
        if inside.kind != "jpeg":
            try:
                return self._compressed(with_end(unpadded), inside)
            except Exception:  # the byte was the frame's, or it is damaged
                return self._compressed(with_end(data), inside)
        array, photometric = self._compressed(with_end(unpadded), inside)
        filled, _ = self._compressed(with_end(unpadded, _FILLING), inside)
        if not np.array_equal(array, filled):
            raise DecodeError("is cut off: its compressed data ends before the picture does")
        return array, photometric

    def _compressed(self, data: bytes, inside: Codestream) -> tuple[np.ndarray, str]:
        """Decode a frame of one of the JPEG family, which says itself how deep it is."""
        plugin = choose_plugin(self._decoder, inside.precision)
        if plugin == "pillow" and inside.components == 3:
            return self._colour_jpeg(data)
        options = self._options(inside.components)
        options["bits_stored"] = inside.precision
        options["bits_allocated"] = next(n for n in (8, 16, 32) if inside.precision <= n)
        if inside.components == 3:
            options["planar_configuration"] = 0  # decoders give colours pixel by pixel
        if plugin in CRASHING:
            array, photometric = _isolated.decode(data, str(self._syntax), plugin, options)
        else:
            array, photometric = self._plain(data, options, plugin)
        if inside.components == 3:
            photometric = self._colours(inside, photometric, array)
        return array, photometric

    def _plain(
        self, data: bytes, options: dict[str, Any], plugin: str = ""
    ) -> tuple[np.ndarray, str]:
        plugin = plugin or choose_plugin(self._decoder, self._layout.stored)
        try:
            array, properties = self._decoder.as_array(
                encapsulate([data]),
                index=0,
                raw=True,
                decoding_plugin=plugin,
                **options,
            )
        except BaseException as error:
            # A decoder in Rust panics on damage: that is no Exception, and would end the worker.
            if type(error).__name__ != "PanicException":
                raise
            raise DecoderError("its compressed data is damaged") from None
        return array, str(properties["photometric_interpretation"])

    def _colours(self, inside: Codestream, decoded: str, array: np.ndarray) -> str:
        """Return what the components of a decoded frame are.

        The codestream decides where it says something. Where it does not, the header does, unless
        it speaks of halved colours over whole ones, or the picture shows that it is wrong: then it
        was written for another codestream. Ultrasound is mostly grey, and grey is three equal
        values in RGB, two middle ones in YBR.
        """
        if inside.colours:
            return inside.colours
        depth = 2 ** (inside.precision - 1)
        near = max(_NEAR * depth // 128, 1)
        values = array.astype(np.int32)
        equal = float((np.ptp(values, axis=2) <= near).mean())
        middle = float((np.abs(values[..., 1:] - depth).max(axis=2) <= near).mean())
        contradicts = decoded in (*HALVED, "YBR_PARTIAL_420") and not inside.halved
        if contradicts or max(equal, middle) > _SURE > 1 - _SURE > min(equal, middle):
            return "YBR_FULL" if middle > equal else "RGB"
        return decoded

    def _colour_jpeg(self, data: bytes) -> tuple[np.ndarray, str]:
        """Decode a colour JPEG; what its own markers say of its colours beats the header.

        Scanners write YBR into the header over JPEGs whose Adobe marker says RGB, and the reverse.
        Without a marker, and without letters for component names, the header is all there is.
        """
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        marked = "adobe_transform" in image.info or "jfif" in image.info
        named = [layer[0] for layer in getattr(image, "layer", ())] == [82, 71, 66]
        if not marked and not named and self._layout.photometric == "RGB":
            image.draft("YCbCr", image.size)  # that is: do not touch the components
            return np.asarray(image), "RGB"
        return np.asarray(image.convert("RGB")), "RGB"

    def _options(self, samples: int) -> dict[str, Any]:
        layout = self._layout
        photometric = layout.photometric
        if samples == 1 and layout.samples != 1:
            photometric = "MONOCHROME2"  # a grey codestream under a header of colours
        options: dict[str, Any] = {
            "rows": layout.rows,
            "columns": layout.columns,
            "samples_per_pixel": samples,
            "bits_allocated": layout.allocated,
            "bits_stored": layout.stored,
            "pixel_representation": int(layout.signed),
            "photometric_interpretation": photometric,
            "number_of_frames": 1,
            "pixel_keyword": self._pixels.keyword,
        }
        if samples > 1:
            options["planar_configuration"] = int(layout.planes)
        return options


def _native_frames(pixels: PixelElement, layout: PixelFormat, stated: int) -> int:
    """Count the whole frames of uncompressed pixel data."""
    bits = layout.rows * layout.columns * layout.samples * layout.allocated
    full = bits
    if layout.photometric in HALVED:
        bits = bits * 2 // 3
    length = pixels.place.length
    if layout.photometric in HALVED and length * 8 >= full * stated:
        raise DecodeError(
            f"has pixel data a half longer than '{layout.photometric}' takes: its photometric "
            "interpretation or its number of frames is wrong"
        )
    held = length * 8 // bits
    if held < 1:
        raise DecodeError(f"holds {length} bytes of pixel data, less than one frame of {bits // 8}")
    # Odd lengths are padded by a byte, which is no frame more.
    return stated if held > stated and (held - stated) * bits < 16 else held


def first_codestream(stream: BinaryIO, pixels: PixelElement, stated: int) -> Codestream | None:
    """Return what the first compressed frame says of itself, None where it does not."""
    first = split_frames(stream, pixels.place, stated)[0]
    try:
        return read_codestream(read_pieces(stream, first[:1])[:_HEAD])
    except DecodeError:
        return None  # decoding the frame says why


def film_pieces(stream: BinaryIO, pixels: PixelElement) -> Sequence[Piece]:
    """Return where a film lies in the file, which is in one piece over all fragments."""
    if not pixels.encapsulated:
        return [pixels.place]
    return all_fragments(stream, pixels.place)
