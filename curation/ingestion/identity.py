"""Who an image is: its id, from content and origin, and its group, the patient, study or clip.

What others may know (a patient, an instance, the user's ids) goes under a key, where there is one:
a bare hash of few values is found by trying them.
"""

import hashlib
import re
from dataclasses import dataclass

from echostill.curation.deidentification.pseudonyms import keyed_hash
from echostill.curation.ingestion.patients.spelling import is_missing, is_placeholder, patient_group
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


@dataclass(frozen=True)
class Belonging:
    """Whose a file's images are.

    Attributes:
        group: Patient, study or clip; ``""`` where nothing says.
        study: The study under the key where the group is its patient, else ``""``.
        nobody: Whether the patient's id is a placeholder, so that the group is another.
    """

    group: str
    study: str = ""
    nobody: bool = False


def belonging(
    source: Source, header: DicomHeader | None, settings: IngestSettings, key: bytes | None
) -> Belonging:
    """Find the group of a file's images: the user comes first, then patients, then studies."""
    study = study_group(source.study, key)
    group = source.group or patient_group(source.patient, key)
    if group:
        return Belonging(group, study)
    if pattern := _pattern_group(source, settings):
        return Belonging(pattern)
    nobody = bool(source.patient) and is_placeholder(source.patient)
    if header is not None:
        study = study or study_group(header.study_instance_uid, key)
        if patient := patient_group(header.patient_id, key, header.issuer):
            return Belonging(patient, study)
        nobody = nobody or (bool(header.patient_id) and is_placeholder(header.patient_id))
    return Belonging(study, nobody=nobody)


def _pattern_group(source: Source, settings: IngestSettings) -> str:
    match = re.search(settings.group_pattern, source.name) if settings.group_pattern else None
    if match is None:
        return ""
    return (match.group(1) if match.re.groups else match.group(0)) or ""


def study_group(study: str, key: bytes | None) -> str:
    """Return a study's group, under the key where there is one; ``""`` without a study."""
    if is_missing(study):
        return ""
    plain = digest("study", study)
    return plain if key is None else keyed_hash(key, "study", plain)


def digest(*parts: str) -> str:
    """Return 128 bits over the parts in hexadecimal; lengths keep ("ab", "c") from ("a", "bc")."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        hasher.update(len(encoded).to_bytes(8, "little") + encoded)
    return hasher.hexdigest()
