"""Stored values of one DICOM frame at a time, by the decoder that suits its transfer syntax."""

import io
import struct

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import (
    HTJ2K,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from echostill.platform.imaging.dicom.codestream import check_size_inside
from echostill.platform.imaging.dicom.encapsulation import split_frames
from echostill.platform.imaging.dicom.isolation import IsolatedDecoder
from echostill.platform.imaging.images import DecodeError

# Plug-ins of pydicom, best first: exact and quick ones before those that only can.
_PLUGINS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((JPEGBaseline8Bit, JPEGExtended12Bit), ("pillow", "gdcm", "pylibjpeg")),
    **dict.fromkeys((JPEGLossless, JPEGLosslessSV1), ("gdcm", "pylibjpeg")),
    **dict.fromkeys(JPEGLSTransferSyntaxes, ("gdcm", "pyjpegls", "pylibjpeg")),
    **dict.fromkeys(JPEG2000TransferSyntaxes, ("pylibjpeg", "gdcm", "pillow")),
    **dict.fromkeys((HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), ("pylibjpeg",)),
    RLELossless: ("pylibjpeg", "pydicom"),
}
# What pip is asked for where a decoder is missing.
_PACKAGES: dict[str, str] = {
    **dict.fromkeys(_PLUGINS, "pylibjpeg pylibjpeg-openjpeg"),
    **dict.fromkeys((JPEGLossless, JPEGLosslessSV1), "python-gdcm"),
    **dict.fromkeys(JPEGLSTransferSyntaxes, "python-gdcm"),
}
_CRASHING = ("gdcm", "pyjpegls")  # end or block their process on some damaged frames
_isolated = IsolatedDecoder()
_SUBSAMPLED = ("YBR_FULL_422", "YBR_PARTIAL_422")


class FrameDecoder:
    """Decodes the frames of one data set.

    Attributes:
        held: Frames that the pixel data holds, whatever the header states.
    """

    def __init__(self, dataset: pydicom.Dataset, syntax: UID, stated: int) -> None:
        """Find the frames.

        Raises:
            DecodeError: The transfer syntax is not read, or no frame is there.
        """
        self._dataset, self._syntax = dataset, syntax
        self._photometric = str(dataset.get("PhotometricInterpretation") or "")
        self._decoder, self._plugin = _choose(syntax, int(dataset.get("BitsStored") or 8))
        self._frames: list[list[memoryview]] = []
        if syntax.is_encapsulated:
            extended = dataset.get("ExtendedOffsetTable") or b""
            offsets = struct.unpack(f"<{len(extended) // 8}Q", extended[: len(extended) // 8 * 8])
            only_one = syntax == RLELossless
            self._frames = split_frames(
                dataset.PixelData, stated, offsets, one_fragment_each=only_one
            )
            self.held = len(self._frames)
        else:
            self.held = self._native_frames(stated)

    def decode(self, index: int) -> tuple[np.ndarray, str]:
        """Decode one frame.

        Returns:
            Values (H, W) or (H, W, samples), and the photometric interpretation that they have;
            the decoder may have changed it.
        """
        if not self._syntax.is_encapsulated:
            stand_in = {"YBR_PARTIAL_422": "YBR_FULL_422"}.get(self._photometric)
            changed = {"photometric_interpretation": stand_in} if stand_in else {}
            values, _ = self._decoder.as_array(
                self._dataset, index=index, raw=True, validate=False, **changed
            )
            return values, self._photometric
        data = b"".join(self._frames[index])
        if self._syntax != RLELossless:
            check_size_inside(data, int(self._dataset.Rows), int(self._dataset.Columns))
        if self._plugin == "pillow" and int(self._dataset.get("SamplesPerPixel") or 1) == 3:
            return self._colour_jpeg(data)
        if self._plugin in _CRASHING:
            return _isolated.decode(data, str(self._syntax), self._plugin, self._options())
        values, properties = self._decoder.as_array(
            encapsulate([data]), index=0, raw=True, **self._options(), decoding_plugin=self._plugin
        )
        return values, str(properties["photometric_interpretation"])

    def _native_frames(self, stated: int) -> int:
        """Count the whole frames of uncompressed pixel data."""
        dataset = self._dataset
        name = next(
            n for n in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if n in dataset
        )
        samples = int(dataset.get("SamplesPerPixel") or 1)
        pixels = int(dataset.Rows) * int(dataset.Columns) * samples
        bits = pixels * int(dataset.BitsAllocated)
        full = bits
        if self._photometric in _SUBSAMPLED:
            bits = bits * 2 // 3
        length = len(dataset[name].value)
        if self._photometric in _SUBSAMPLED and length * 8 >= full * stated:
            raise DecodeError(
                f"has pixel data a half longer than '{self._photometric}' takes: its photometric "
                "interpretation or its number of frames is wrong"
            )
        held = length * 8 // bits
        if held < 1:
            raise DecodeError(
                f"holds {length} bytes of pixel data, less than one frame of {bits // 8}"
            )
        # Odd lengths are padded by a byte, which is no frame more.
        return stated if held > stated and (held - stated) * bits < 16 else held

    def _colour_jpeg(self, data: bytes) -> tuple[np.ndarray, str]:
        """Decode a colour JPEG; what its own markers say of its colours beats the header.

        Scanners write YBR into the header over JPEGs whose Adobe marker says RGB, and the reverse.
        Without a marker, and without letters for component names, the header is all there is.
        """
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        marked = "adobe_transform" in image.info or "jfif" in image.info
        named = [layer[0] for layer in getattr(image, "layer", ())] == [82, 71, 66]
        if not marked and not named and self._photometric == "RGB":
            image.draft("YCbCr", image.size)  # that is: do not touch the components
            return np.asarray(image), "RGB"
        return np.asarray(image.convert("RGB")), "RGB"

    def _options(self) -> dict[str, object]:
        dataset = self._dataset
        samples = int(dataset.get("SamplesPerPixel") or 1)
        options = {
            "rows": int(dataset.Rows),
            "columns": int(dataset.Columns),
            "samples_per_pixel": samples,
            "bits_allocated": int(dataset.BitsAllocated),
            "bits_stored": int(dataset.BitsStored),
            "pixel_representation": int(dataset.get("PixelRepresentation") or 0),
            "photometric_interpretation": self._photometric,
            "number_of_frames": 1,
            "pixel_keyword": "PixelData",
        }
        if samples > 1:
            options["planar_configuration"] = int(dataset.get("PlanarConfiguration") or 0)
        return options


def _choose(syntax: UID, bits: int) -> tuple[Decoder, str]:
    """Return pydicom's decoder and the plug-in to use; for native syntaxes there is none."""
    try:
        encapsulated = syntax.is_encapsulated
        decoder = get_decoder(syntax)
    except (NotImplementedError, ValueError):
        name = syntax.name if syntax.name != str(syntax) else str(syntax)
        raise DecodeError(f"has the transfer syntax '{name}', which is not read") from None
    if not encapsulated:
        return decoder, ""
    twelve = syntax == JPEGExtended12Bit and bits > 8
    able = [
        plugin
        for plugin in _PLUGINS.get(syntax, ())
        if plugin in decoder.available_plugins and not (twelve and plugin != "pylibjpeg")
    ]
    if not able:
        what = " of 12 bits" if twelve else ""
        package = "pylibjpeg pylibjpeg-libjpeg (GPL-3)" if twelve else _PACKAGES.get(syntax, "")
        raise DecodeError(
            f"has the transfer syntax '{syntax.name}'{what}, whose decoder is not installed: "
            f"pip install {package}"
        )
    return decoder, able[0]
