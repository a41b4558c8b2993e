"""What an input format is: one record that says how a file of it is told and opened.

:mod:`echostill.platform.imaging.containers` holds the table of them; a new format is a module that
ends with its record, a line of that table, and a test.
"""

from collections.abc import Callable
from dataclasses import dataclass

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Limits


@dataclass(frozen=True)
class Reader:
    """One input format.

    Attributes:
        name: What the format is called in code.
        suffixes: Endings of names, in lower case with their dot. They count where the content says
            nothing, and are what a folder is searched for.
        sniff: Tells from a file's first bytes (:data:`~echostill.platform.imaging.files.HEAD`,
            fewer of a short file) whether it is of this format.
        open: Turns a file into a clip of frames, within limits; raises DecodeError where it cannot.
        title: What the page of formats calls it.
        reads: What of the format is read, for that page.
        notes: What else to know, for that page.
        still: Whether a file mostly holds one picture, so that its size says nothing of frames.
    """

    name: str
    suffixes: tuple[str, ...]
    sniff: Callable[[bytes], bool]
    open: Callable[[SourceFile, Limits], Clip]
    title: str
    reads: str
    notes: str = ""
    still: bool = False
