"""Transfer syntaxes by name, with the decoder that suits each."""

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

from echostill.platform.imaging.images import DecodeError

FILMS = "1.2.840.10008.1.2.4.10"  # MPEG-2, MPEG-4 and HEVC begin so: a film in one piece
CRASHING = ("gdcm", "pyjpegls")  # end or block their process on some damaged frames

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
# Of the standard (PS3.6 A), but younger than pydicom's dictionary; and one of a maker's own.
_OTHER_NAMES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
    "1.2.840.113619.5.2": "GE Private Implicit VR Big Endian",
}


def name_of(syntax: UID) -> str:
    """Return what a transfer syntax is called, its UID only where it has no name."""
    return str(_OTHER_NAMES.get(syntax, syntax.name))


def choose_decoder(syntax: UID) -> Decoder:
    """Return pydicom's decoder.

    Raises:
        DecodeError: The transfer syntax is not read.
    """
    try:
        return get_decoder(syntax)
    except (NotImplementedError, ValueError):
        said = f"has the transfer syntax '{name_of(syntax)}', which is not read"
        raise DecodeError(said) from None


def choose_plugin(decoder: Decoder, precision: int) -> str:
    """Return the plug-in to decode a compressed frame with.

    Args:
        decoder: Of the transfer syntax.
        precision: Bits of the frame's values: few plug-ins read JPEG of twelve.

    Raises:
        DecodeError: None of those that can is installed.
    """
    syntax = decoder.UID
    twelve = syntax in (JPEGBaseline8Bit, JPEGExtended12Bit) and precision > 8
    able = [
        plugin
        for plugin in _PLUGINS.get(syntax, ())
        if plugin in decoder.available_plugins and not (twelve and plugin != "pylibjpeg")
    ]
    if not able:
        what = " of 12 bits" if twelve else ""
        package = "pylibjpeg pylibjpeg-libjpeg (GPL-3)" if twelve else _PACKAGES.get(syntax, "")
        raise DecodeError(
            f"has the transfer syntax '{name_of(syntax)}'{what}, whose decoder is not installed: "
            f"pip install {package}"
        )
    return able[0]
