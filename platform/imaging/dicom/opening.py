"""DICOM files to frames: one frame in memory at a time, in the colours the file means.

Header values that name a person are kept out of every message and of every ``repr``.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence

from pydicom.uid import UID

from echostill.platform.imaging.dicom.colours import display
from echostill.platform.imaging.dicom.decoding import FrameDecoder, film_pieces, first_codestream
from echostill.platform.imaging.dicom.file import (
    DicomFile,
    PixelElement,
    is_bare_dicom,
    is_dicom,
    open_file,
)
from echostill.platform.imaging.dicom.header import (
    pixel_aspect,
    read_header,
    stretched,
)
from echostill.platform.imaging.dicom.isolation import DecoderError
from echostill.platform.imaging.dicom.kinds import refuse_other_kinds
from echostill.platform.imaging.dicom.pixels import pixel_format
from echostill.platform.imaging.dicom.syntaxes import FILMS, name_of
from echostill.platform.imaging.files import FileParts, SourceFile
from echostill.platform.imaging.frames import Clip, Frame, Limits
from echostill.platform.imaging.header import DicomHeader
from echostill.platform.imaging.images import DecodeError, check_size, square_pixels, square_size
from echostill.platform.imaging.reader import Reader
from echostill.platform.imaging.video import open_film


def open_dicom(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open a DICOM file; its frames are decoded one by one as they are asked for.

    Palettes and YBR become RGB, MONOCHROME1 is inverted, values of more than 8 bits go through the
    rescale and the window (or, without a window, the frame's own range), pixels that are not square
    are made so. A damaged frame comes with its error and does not stop those after it.

    Returns:
        The clip, with its header. It has the frames that are there: a file that states more gives
        one error more, one that states fewer gives all.

    Raises:
        DecodeError: The file is no DICOM file, holds no pixel data, is too large, or needs a
            decoder that is not installed.
    """
    limits = limits or Limits()
    file = open_file(source, limits)
    with _in_words(file.syntax):
        refuse_other_kinds(file.dataset, file.pixels is not None)
        pixels = _pixels(file)
        header = read_header(file.dataset)
        layout = pixel_format(file.dataset, pixels, header.frames)
        if pixels.encapsulated and not layout.is_whole:
            with pixels.source.opened() as stream:
                layout = layout.completed(first_codestream(stream, pixels, header.frames))
        check_size(layout.columns, layout.rows, limits.max_pixels)
        aspect = pixel_aspect(file.dataset)
        height, width = square_size(layout.rows, layout.columns, aspect)
        check_size(width, height, limits.max_pixels)
        header = stretched(header, layout.rows, layout.columns, aspect)
        if str(file.syntax).startswith(FILMS):
            return _film(pixels, header, aspect, limits)
        with pixels.source.opened() as stream:
            decoder = FrameDecoder(stream, file, pixels, layout, header.frames)
    if decoder.held > limits.max_frames:
        raise DecodeError(
            f"holds {decoder.held} frames, more than allowed (max_frames={limits.max_frames})"
        )

    def decode(indices: Sequence[int]) -> Iterator[Frame]:
        with pixels.source.opened() as stream:
            for index in indices:
                if index >= decoder.held:
                    said = f"holds {decoder.held} of the {header.frames} frames that it states"
                    yield Frame(index, None, DecodeError(said))
                    return
                try:
                    with _in_words(file.syntax):
                        values = decoder.decode(stream, index)
                        shown = square_pixels(display(values, file.dataset, index), aspect)
                    yield Frame(index, shown)
                except DecodeError as error:
                    yield Frame(index, None, error)

    # One frame more than there are stands for all that are missing, and says so.
    missing = header.frames > decoder.held
    return Clip(decoder.held + missing, decode, header)


@contextlib.contextmanager
def _in_words(syntax: UID) -> Iterator[None]:
    """Turn the errors of pydicom and its decoders into ours, and drop its warnings.

    Warnings and errors quote header values, which may name a person, and speak of what only their
    authors know. On damaged bytes decoders raise every kind of error.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DecodeError:
        raise
    except DecoderError as error:
        raise DecodeError(f"cannot be decoded: {error} ({name_of(syntax)})") from None
    except Exception:
        raise DecodeError(
            f"cannot be decoded: its pixel data is damaged, or not what its header says "
            f"({name_of(syntax)})"
        ) from None


def _pixels(file: DicomFile) -> PixelElement:
    if file.pixels is None:
        cut = "Rows" in file.dataset
        raise DecodeError("holds no pixel data" + (", or ends before it" if cut else ""))
    return file.pixels


def _film(pixels: PixelElement, header: DicomHeader, aspect: float, limits: Limits) -> Clip:
    """Open a film in one piece; regions are declared on its frames as they are stored."""
    with pixels.source.opened() as stream:
        pieces = film_pieces(stream, pixels)
    film = open_film(FileParts("film", whole=pixels.source, parts=tuple(pieces)), limits)

    def decode(indices: Sequence[int]) -> Iterator[Frame]:
        for frame in film.decode(indices):
            shown = None if frame.pixels is None else square_pixels(frame.pixels, aspect)
            yield Frame(frame.index, shown, frame.error)

    return Clip(film.frames, decode, header)


def _sniff(head: bytes) -> bool:
    return is_dicom(head) or is_bare_dicom(head)


READER = Reader(
    name="dicom",
    suffixes=(".dcm", ".dicom"),
    sniff=_sniff,
    open=open_dicom,
    title="DICOM",
    reads="see below",
    notes="one frame in memory at a time",
)
