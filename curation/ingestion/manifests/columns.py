"""What the columns of a manifest mean: names that people use, without case, blanks or underscores.

The same words are read from the ``.json`` files of an archive. A column of another name is ignored
and named; one that looks like a misspelt name of ours is refused, as five pictures of one patient
would silently become five groups without it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from echostill.platform.errors import UsageError

# By meaning, the best name first: where a manifest has several, the first is used.
_NAMES: dict[str, tuple[str, ...]] = {
    "file": (
        *("file", "path", "filename", "filepath", "fullpath", "relativepath", "uri"),
        *("imagefile", "imagepath", "imagename", "imagefilename", "imagefilepath", "image"),
        *("img", "imgpath", "imgname", "imgfile", "dicom", "dicomfile", "dicompath", "video"),
    ),
    "id": ("id",),
    "group": ("group", "groupid", "cluster", "clusterid"),
    "patient": (
        *("patient", "patientid", "patientno", "patientnr", "patientnumber", "patientcode"),
        *("patientkey", "patientname", "patientuid", "pid", "ptid", "mrn", "subject", "subjectid"),
        *("subjectno", "subjectnumber", "subjectcode", "sub", "participant", "participantid"),
        *("pat", "patid", "patno", "patnr", "subjid", "usubjid", "individual", "individualid"),
        *(
            "medicalrecordnumber",
            "person",
            "personid",
            "case",
            "caseid",
            "caseno",
            "casenumber",
            "animal",
            "animalid",
        ),
    ),
    "study": (
        *("study", "studyid", "studyuid", "studyinstanceuid", "exam", "examid", "examination"),
        *("examinationid", "visit", "visitid", "accession", "accessionnumber"),
    ),
    "organ": (
        *(
            "organ",
            "organname",
            "organtype",
            "bodypart",
            "bodypartexamined",
            "anatomy",
            "anatomicalregion",
        ),
        "anatomicregion",
    ),
    "device": (
        *(
            "device",
            "devicename",
            "devicetype",
            "devicemodel",
            "scanner",
            "scannermodel",
            "machine",
        ),
        *("manufacturermodelname", "manufacturermodel", "equipment", "ultrasoundmachine"),
    ),
    "label": (
        *("label", "labelname", "class", "classname", "classlabel", "category", "target"),
        *("diagnosis", "groundtruth"),
    ),
}
_MEANINGS = {name: meaning for meaning, names in _NAMES.items() for name in names}
_MEANINGS |= {f"{name}s": meaning for name, meaning in _MEANINGS.items()}
MEANINGS = tuple(_NAMES)
# What a misspelt name is compared with: short and common words resemble too many others.
_SPELLED = tuple(
    name
    for name in _MEANINGS
    if name in _NAMES or (len(name) >= 6 and name not in ("target", "visits", "person", "images"))
    if len(name) >= 5
)


@dataclass(frozen=True)
class Columns:
    """The columns of a manifest: which are used and for what, and which are not.

    Attributes:
        used: Meaning by column.
        ignored: The other columns.
    """

    used: dict[str, str]
    ignored: tuple[str, ...] = ()

    def values(self, row: Mapping[str, object]) -> dict[str, str]:
        """Return the values of a row by meaning, as text."""
        return {meaning: as_text(row.get(column)) for column, meaning in self.used.items()}

    def describe(self) -> str:
        """Say which columns are used, under other names than ours as what, and which are not."""
        used = (
            name if name == meaning else f"{name} (as {meaning})"
            for name, meaning in self.used.items()
        )
        said = f"uses {', '.join(used)}"
        return said + (f"; ignores {', '.join(self.ignored)}" if self.ignored else "")


def as_text(value: object) -> str:
    """Return a cell as text, since the groups '012' and '12' are two patients."""
    return "" if value is None else str(value).strip()


def match_columns(names: Iterable[str]) -> Columns:
    """Find the meaning of each column; of several with one meaning, the best name is used."""
    present = list(dict.fromkeys(names))
    used: dict[str, str] = {}
    for meaning, known in _NAMES.items():
        able = [name for name in present if _MEANINGS.get(normal(name)) == meaning]
        if able:
            used[min(able, key=lambda name: _rank(name, known))] = meaning
    return Columns(
        {name: used[name] for name in present if name in used},
        tuple(name for name in present if name not in used),
    )


def _rank(name: str, known: tuple[str, ...]) -> tuple[int, bool]:
    plain = normal(name)
    place = known.index(plain if plain in known else plain.removesuffix("s"))
    return place, name != known[place]


def manifest_columns(location: str, names: Iterable[str]) -> Columns:
    """Find the columns of a manifest.

    Raises:
        UsageError: There is none with files, or one is named almost as one that would be used.
    """
    present = list(names)
    columns = match_columns(present)
    if "file" not in columns.used.values():
        near = [name for name in present if likely(name, ("file", *_NAMES["file"]))]
        hint = f" Is it '{near[0]}'? Then rename it." if near else ""
        raise UsageError(
            f"manifest '{location}' has no column 'file' (or 'path'); it has: "
            f"{', '.join(present) or 'none'}.{hint} The first row names the columns."
        )
    for name in columns.ignored:
        wanted = misspelt(name)
        if wanted and wanted not in columns.used.values():
            raise UsageError(
                f"manifest '{location}' has a column '{name}', which is not used: is it "
                f"'{wanted}'? Then rename it, else to something less alike."
            )
    return columns


def normal(name: str) -> str:
    """Return a column's name in lower case, without blanks, underscores, dots and the like."""
    return re.sub(r"[\W_]+", "", name.casefold())


def misspelt(name: str) -> str:
    """Return the meaning that a column's name was probably to have, ``""`` where none is near.

    One letter more, less or other, or two that changed places.
    """
    found = likely(name, _SPELLED)
    return _MEANINGS[found] if found else ""


def likely(name: str, known: Iterable[str]) -> str:
    """Return the known name that another is a slip of, ``""`` where there is none."""
    plain = normal(name)
    if any(character.isdigit() for character in plain):
        return ""  # 'label2' is a name of its own
    for other in known:
        if plain != other and abs(len(plain) - len(other)) <= 1 and _is_slip(plain, other):
            return other
    return ""


def _is_slip(first: str, second: str) -> bool:
    """Return whether one slip leads from one word to the other (F. Damerau, 1964)."""
    start = next(
        (i for i, pair in enumerate(zip(first, second, strict=False)) if len(set(pair)) > 1), None
    )
    if start is None:
        return True  # one is the other and a letter more
    first, second = first[start:], second[start:]
    swapped = first[:2] == second[1::-1] and first[2:] == second[2:]
    return swapped or first[1:] == second[1:] or first[1:] == second or first == second[1:]
