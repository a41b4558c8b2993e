"""Pictures of a viewer's program or of web pages, told from those of ultrasound.

A disc from a hospital brings its viewer along, and an export its web pages: logos, icons, buttons
and screenshots of the help, as image files. What lies beside a program or a web page, or is called
a logo or an icon, is one of them unless it looks like ultrasound.
"""

import posixpath
import re
from collections.abc import Iterable

import numpy as np

from echostill.platform.imaging.images import NoImageError

VIEWER = "pictures of a viewer or web page"  # kind of what is no picture of ultrasound

_PROGRAMS = (
    *(".exe", ".dll", ".msi", ".ocx", ".jar", ".jnlp", ".app", ".dylib", ".so", ".chm", ".hlp"),
    *(".css", ".js", ".hta", ".htc", ".swf"),
)
# A page that is read by itself, such as a README.html, says nothing about the pictures beside it.
_PAGES = re.compile(
    r"autorun\.inf|(?:index|default|start|main|home|help|viewer|toc|menu|contents?|welcome)"
    r"\.x?html?"
)
_FOLDERS = re.compile(
    r"(?:.*[ ._-])?viewer|ihe[ _-]?pdi|help|icons?|logos?|skins?|toolbars?|buttons?|.+\.app"
)
_SIZE = r"(?:[ ._-]?\d{1,4}(?:x\d{1,4})?(?:@\dx)?)?"
_NAMES = re.compile(rf"(?:.*[ ._-])?(?:logo|favicon|icon)s?{_SIZE}(?:[ ._-](?:small|large))?")
_NAMES_BESIDE = re.compile(
    r"(?:.*[ ._-])?(?:splash|banner|backgrounds?|bg|buttons?|btn|cursor|arrow|toolbar|bullet|"
    rf"header|footer|spacer|screenshot|about|wallpaper)(?:[ ._-].*|{_SIZE})"
)
_DICOM = (".dcm", ".dicom", ".ima", ".dic")
_INDEX = "dicomdir"

_SMALLEST = 100  # pixels of the longer side, below which a picture is an icon
_TINT = 40  # grey levels between the channels of a pixel that looks grey
_GREY = 0.5  # share of such pixels, at least: colour flow covers a part of a picture
_LIGHT = 200  # grey level of a page or a window
_PAPER = 0.3  # share of such pixels, at most
_ROUGH = 3  # grey levels between neighbours that speckle exceeds and a drawing does not
_SPECKLED = 0.15  # share of the lit pixels that differ as much, at least


class Viewers:
    """Which folders of a source belong to a viewer or to web pages.

    Args:
        names: Paths of all its files, with ``/`` between their parts.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._own: set[str] = set()
        self._dicom: set[str] = set()  # folders with DICOM files somewhere in them
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Take one more file into account."""
        folder, base = posixpath.split(name)
        base = base.casefold()
        if base.endswith(_PROGRAMS) or _PAGES.fullmatch(base):
            self._own.add(folder)
        elif base == _INDEX or _may_be_dicom(base):
            while folder not in self._dicom:
                self._dicom.add(folder)
                folder = posixpath.dirname(folder)

    def claim(self, name: str) -> str:
        """Say whether a picture may be a viewer's: ``named``, ``beside`` (by its place), or ``""``.

        Beside a program are the pictures in its folder. Where the source has DICOM files
        elsewhere, so are those in the folders within.
        """
        folder, base = posixpath.split(name)
        stem = posixpath.splitext(base)[0].casefold()
        if _NAMES.fullmatch(stem):
            return "named"
        if not self._beside(folder):
            return ""
        return "named" if _NAMES_BESIDE.fullmatch(stem) else "beside"

    def _beside(self, folder: str) -> bool:
        if folder in self._own:
            return True
        while folder and self._dicom and folder not in self._dicom:
            if folder in self._own or _FOLDERS.fullmatch(posixpath.basename(folder).casefold()):
                return True
            folder = posixpath.dirname(folder)
        return False


def _may_be_dicom(base: str) -> bool:
    """Return whether a file is called as DICOM files are: ``IM0001``, ``1.2.840.99``, ``a.dcm``."""
    parts = base.split(".")
    plain = all(part.isdigit() for part in parts[1:]) and any(sign.isdigit() for sign in base)
    return plain or base.endswith(_DICOM)


def refuse_viewer_picture(pixels: np.ndarray, claim: str) -> None:
    """Refuse a picture of a viewer or of a web page.

    Args:
        pixels: uint8 (H, W) or (H, W, 3).
        claim: What :meth:`Viewers.claim` says about it.

    Raises:
        NoImageError: It is one.
    """
    if claim == "named":
        raise NoImageError("is called as the pictures of a program or web page are", VIEWER)
    if claim and not looks_like_ultrasound(pixels):
        raise NoImageError(
            "lies in the folder of a program or web page and does not look like ultrasound", VIEWER
        )


def looks_like_ultrasound(pixels: np.ndarray) -> bool:
    """Return whether a picture is large, mostly grey, mostly not white, and speckled.

    Args:
        pixels: uint8 (H, W) or (H, W, 3).
    """
    if max(pixels.shape[:2]) < _SMALLEST:
        return False
    high = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    if pixels.ndim == 3 and float((high - pixels.min(axis=2) <= _TINT).mean()) < _GREY:
        return False
    if float((high >= _LIGHT).mean()) > _PAPER:
        return False
    lit = high[:, 1:] > _ROUGH
    steps = np.abs(high[:, 1:].astype(np.int16) - high[:, :-1]) > _ROUGH
    return bool(lit.any()) and float(steps[lit].mean()) >= _SPECKLED
