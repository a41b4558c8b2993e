"""Who an image is: its id, from content and origin, and its group, the patient, study or clip.

What others may know (a patient, an instance, the user's ids) goes under a key, where there is one:
a bare hash of few values is found by trying them.
"""

import hashlib
import hmac
import re

from echostill.curation.deidentification.pseudonyms import keyed_hash
from echostill.curation.ingestion.settings import IngestSettings, Source
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.header import DicomHeader


class Identity:
    """Ids of a file's frames: the user's, the DICOM instance's, or from name and content.

    The first two may be known to others, who could find them by trying: they go under the key, the
    user's own where names are hidden.
    """

    def __init__(
        self,
        source: Source,
        file: SourceFile,
        header: DicomHeader | None,
        frames: int,
        key: bytes | None,
        hides_names: bool,
    ) -> None:
        self._source, self._file, self._header, self._frames = source, file, header, frames
        self._key = key
        self._hides_names = hides_names
        self._file_id = ""

    @property
    def file_id(self) -> str:
        """Id of the file as a whole, from its name and its content."""
        if not self._file_id:
            self._file_id = digest("file", self._source.name, self._file.sha256())
        return self._file_id

    def of_frame(self, index: int) -> str:
        """Return the id of one frame."""
        if self._source.id:
            own = digest("id", self._source.id, *([str(index)] if self._frames > 1 else []))
            return keyed_hash(self._key, "id", own) if self._key and self._hides_names else own
        if self._header is not None:
            origin = self._header.sop_instance_uid or self.file_id
            instance = digest("dicom", origin, str(index))
            return keyed_hash(self._key, "instance", instance) if self._key else instance
        return digest("frame", self.file_id, str(index)) if self._frames > 1 else self.file_id


def group_of(
    source: Source, header: DicomHeader | None, settings: IngestSettings, key: bytes | None
) -> str:
    """Return the group of a file's images, ``""`` where nothing says: the user comes first."""
    group = source.group or patient_group(source.patient, key) or _pattern_group(source, settings)
    if not group and header is not None:
        group = _dicom_group(header, key)
    return group


def _pattern_group(source: Source, settings: IngestSettings) -> str:
    match = re.search(settings.group_pattern, source.name) if settings.group_pattern else None
    if match is None:
        return ""
    return (match.group(1) if match.re.groups else match.group(0)) or ""


def _dicom_group(header: DicomHeader, key: bytes | None) -> str:
    """Return the patient under the key, or else the study."""
    patient = patient_group(header.patient_id, key)
    if patient or not header.study_instance_uid:
        return patient
    study = digest("study", header.study_instance_uid)
    return study if key is None else keyed_hash(key, "study", study)


def patient_group(patient: str, key: bytes | None) -> str:
    """Return a patient's group under the key; ``""`` without a patient, or without a key.

    A bare hash is no veil: patient ids are few and can be tried one by one.
    """
    if not patient or key is None:
        return ""
    return hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()[:32]


def digest(*parts: str) -> str:
    """Return 128 bits over the parts in hexadecimal; lengths keep ("ab", "c") from ("a", "bc")."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        hasher.update(len(encoded).to_bytes(8, "little") + encoded)
    return hasher.hexdigest()
