"""Who a patient is: one person's number in its various spellings, and words that name nobody.

Exports write 12345 as 12345.0, AB-77 as ab-77, and ANONYMOUS where a name was taken out. The first
two are one patient; the last is none, and taken for one it would put a whole hospital into a single
group.
"""

import hmac
import re
from functools import lru_cache

# Without blanks and signs, in lower case.
_MISSING = re.compile(
    r"na|nan|none|null|nil|unknown|unk|undefined|unspecified|missing|not(available|applicable|"
    r"specified|given|known)"
)
_NOBODY = re.compile(
    r"0+|x+|anon|anonym[eo]?|anonym(ous|i[sz]ed|i[sz]e)(patient)?(id)?|anonpatient|"
    r"deid|deidentified(patient)?|(unknown|no|un)?(patient|subject|person)?(name|id|mrn)|"
    r"(unknown|no|un|test|dummy)?(patient|subject|person|case)|patienttest|unnamed|unidentified|"
    r"removed|deleted|redacted|hidden|masked|withheld|confidential|private|"
    r"test|dummy|default|temp|tbd|todo|john ?doe|jane ?doe|pid|mrn"
)


# A table of a million rows has few organs and devices, and a patient's rows follow each other.
_KEPT = 1024


@lru_cache(maxsize=_KEPT)
def is_missing(value: str) -> bool:
    """Return whether a cell says that there is no value, such as ``N/A``."""
    letters = _letters(value)
    return not letters or _MISSING.fullmatch(letters) is not None


@lru_cache(maxsize=_KEPT)
def is_placeholder(patient: str) -> bool:
    """Return whether a patient's id stands for no patient in particular: ANONYMOUS, 0, XXX."""
    return is_missing(patient) or _NOBODY.fullmatch(_letters(patient)) is not None


def _letters(value: str) -> str:
    return re.sub(r"[\W_]+", "", _whole(value).casefold())


def _whole(value: str) -> str:
    """Return a number as it was before a spreadsheet made 12345.0 of 12345."""
    return re.sub(r"^(\d+)\.0+$", r"\1", " ".join(value.split()))


@lru_cache(maxsize=_KEPT)
def same_group(value: str) -> str:
    """Return a group in the one spelling of it, ``""`` where the cell names none."""
    return "" if is_missing(value) else _whole(value)


@lru_cache(maxsize=_KEPT)
def same_organ(value: str) -> str:
    """Return an organ in lower case and single blanks, ``""`` where the cell names none."""
    return "" if is_missing(value) else " ".join(value.casefold().split())


@lru_cache(maxsize=_KEPT)
def same_device(value: str) -> str:
    """Return a device in single blanks, ``""`` where the cell names none."""
    return "" if is_missing(value) else " ".join(value.split())


class Spellings:
    """One spelling for what differs only in case: the first that was met."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def of(self, value: str) -> str:
        """Return the first spelling of a value."""
        return self._first.setdefault(value.casefold(), value)


@lru_cache(maxsize=_KEPT)
def patient_group(patient: str, key: bytes | None, issuer: str = "") -> str:
    """Return a patient's group under the key; ``""`` without a patient, or without a key.

    A plain hash does not protect: patient ids are few and can be tried one by one.

    Args:
        patient: As the file or the manifest has it.
        key: The secret.
        issuer: Who gave the number (DICOM's IssuerOfPatientID): two hospitals have a 12345 each.
    """
    if key is None or is_placeholder(patient):
        return ""
    identity = _whole(patient).casefold()
    if not is_missing(issuer):
        identity = f"{' '.join(issuer.casefold().split())}\0{identity}"
    return hmac.digest(key, identity.encode(), "sha256").hex()[:32]
