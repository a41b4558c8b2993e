"""A hospital's folder: the rows are right, and what is no row is counted and said."""

from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from echostill.curation.deidentification.pseudonyms import Pseudonymiser
from echostill.curation.deidentification.review import ReviewGate
from echostill.curation.ingestion.estimate import estimate
from echostill.curation.ingestion.findings import Findings
from echostill.curation.ingestion.listing import list_files
from echostill.curation.ingestion.settings import IngestSettings
from echostill.curation.ingestion.summary import Summary, in_sample, keep_summary, kept_summary
from echostill.curation.ingestion.worker import IngestWorker
from echostill.platform.errors import EchostillError
from echostill.platform.shards.log import Accounting
from echostill.platform.shards.stage import ShardedStage
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.schemas import POOL_SCHEMA
from echostill.platform.tables.storage import Storage

STORED = "1.2.840.10008.5.1.4.1.1."
KEY = b"k" * 32
PLAIN = Pseudonymiser(KEY, hidden=False)


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (1, 60, 80), dtype=np.uint8)


@pytest.fixture
def hospital(dicom, tmp_path):
    """Six pictures of three studies beside a CT, a CR, reports, masks and papers."""
    root = tmp_path / "export"
    root.mkdir()
    for number in range(6):
        patient = {4: "ANONYMOUS", 5: "P9"}.get(number, "P1")
        (root / f"IM{number}").write_bytes(
            dicom(
                pixels(number),
                SOPInstanceUID=f"1.2.{number}",
                StudyInstanceUID=f"1.9.{number // 2}",
                PatientID=patient,
                Modality="US",
            )
        )
    for name, end, modality in (("CT1", "2", "CT"), ("CT2", "2", "CT"), ("CR1", "1", "CR")):
        made = dicom(pixels(9), SOPClassUID=STORED + end, Modality=modality, SOPInstanceUID="1.3")
        (root / f"{name}.dcm").write_bytes(made)
    (root / "SR1.dcm").write_bytes(dicom(SOPClassUID=STORED + "88.33", Modality="SR"))
    Image.fromarray(pixels(7)[0]).save(root / "extra.png")
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(root / "extra_mask.png")  # all black
    for name in ("a.pdf", "b.pdf", "DICOMDIR", ".DS_Store", "letter.docx"):
        (root / name).write_bytes(b"PK\3\4 paper")
    return root


@pytest.fixture
def ingested(hospital, tmp_path):
    """The shards, written without Ray."""
    settings = IngestSettings(source=str(hospital), deidentify={"pixels": "off"})
    listing = list_files(settings)
    stage = ShardedStage(
        name="ingest",
        table=Storage(str(tmp_path / "pool")),
        quarantine=Storage(str(tmp_path / "quarantine")),
        schema=POOL_SCHEMA,
        fingerprint=Fingerprint({}, "0", {}, {}),
        max_error_rate=0.0,
        expected_class="NoImageError",
    )
    worker = IngestWorker(settings, Pseudonymiser(KEY, hidden=False), ReviewGate(), {})
    half = len(listing.sources) // 2
    records = {
        index: stage.write(index, worker.process([asdict(one) for one in shard]))
        for index, shard in enumerate((listing.sources[:half], listing.sources[half:]))
    }
    return settings, listing, stage, records, worker


def test_the_end_of_an_ingest_names_everything(ingested, tmp_path):
    _, listing, stage, records, _ = ingested
    counts = Accounting.of(records.values(), 0)
    assert (counts.rows_out, counts.quarantined, counts.expected, counts.errors) == (7, 4, 4, 0)
    stage._check(records, running=False)  # although 4 of 11 are in quarantine
    summary = Summary.of(stage, records, listing)
    assert {kind: number for kind, number in summary.passed_over.items() if number} == {
        "CT (DICOM)": 2,
        "CR (DICOM)": 1,
        "Comprehensive SR (DICOM)": 1,
        ".pdf": 2,
        ".docx": 1,
        "DICOMDIR": 1,
        "hidden files": 1,
        "masks or label maps": 1,
    }
    # P1, P9, the study without a patient, and the PNG.
    assert summary.groups.count == 4
    assert summary.groups.largest_images == 4
    assert summary.describe().startswith(
        "; 4 groups, the largest of 4 images (57%); passed over: 2 .pdf, 2 CT (DICOM), 1 .docx"
    )
    (placeholder,) = summary.warnings
    assert "placeholder" in placeholder
    keep_summary(Storage(str(tmp_path / "sources")), summary)
    assert kept_summary(Storage(str(tmp_path / "sources"))) == summary
    assert kept_summary(Storage(str(tmp_path / "none"))) == Summary()


def test_a_retry_counts_nothing_twice(ingested):
    _, listing, stage, records, worker = ingested
    before = Summary.of(stage, records, listing)
    sources = [asdict(one) for one in listing.sources[: len(listing.sources) // 2]]
    earlier = stage.read(records[0])
    failed = earlier.failed_units
    assert failed
    again = earlier.replaced(failed, worker.process_units(sources, failed))
    records[0] = stage.write(0, again)
    assert Summary.of(stage, records, listing) == before


def test_real_errors_still_end_a_run(ingested, hospital, tmp_path):
    settings, _, stage, _, worker = ingested
    (hospital / "broken.png").write_bytes(b"\x89PNG broken")
    sources = [asdict(one) for one in list_files(settings).sources]
    records = {0: stage.write(0, worker.process(sources))}
    with pytest.raises(EchostillError, match="1 of 12 rows so far are in quarantine"):
        stage._check(records, running=False)


def test_the_dry_run_says_the_same_of_its_sample(ingested):
    settings, listing, *_ = ingested
    findings = Findings()
    found = estimate(listing.sources, settings, findings)
    assert (found.failed, found.images) == (0, 7)
    said = list(in_sample(listing, listing.sources, findings, PLAIN))
    assert (
        "passed over",
        "in the sample: 2 CT (DICOM), 1 CR (DICOM), 1 Comprehensive SR (DICOM)",
    ) in said
    (files,) = [text for label, text in said if label == "passed over" and "sample" not in text]
    assert "2 .pdf" in files
    assert "1 masks or label maps" in files
    assert any(label == "warning" and "placeholder" in text for label, text in said)


def test_a_study_under_two_ids_is_told(dicom, tmp_path):
    for number, patient in enumerate(("A", "B")):
        made = dicom(pixels(number), SOPInstanceUID=f"1.2.{number}", PatientID=patient)
        (tmp_path / f"{number}.dcm").write_bytes(made)
    settings = IngestSettings(source=str(tmp_path), deidentify={"pixels": "off"})
    sources = [asdict(one) for one in list_files(settings).sources]
    worker = IngestWorker(settings, Pseudonymiser(KEY, hidden=False), ReviewGate(), {})
    (said,) = Findings([worker.process(sources).notes]).warnings()
    assert "1 study has images under two or more patient ids" in said


def test_a_folder_without_ultrasound_is_refused(ingested):
    _, listing, stage, records, _ = ingested
    summary = Summary.of(stage, records, listing)
    summary.refuse_nothing(Accounting.of(records.values(), 0), "runs/a")
    summary.refuse_nothing(Accounting(0, 0, 0, 1, 0), "runs/a")
    with pytest.raises(EchostillError, match=r"none of the files is a picture.*2 CT \(DICOM\)"):
        summary.refuse_nothing(Accounting(4, 0, 4, 1, 0, expected=4), "runs/a")


def test_the_dry_run_counts_the_groups_that_a_manifest_names(tmp_path):
    names = [f"{number:02d}.png" for number in range(12)]
    for number, name in enumerate(names):
        Image.fromarray(pixels(number)[0]).save(tmp_path / name)
    rows = [
        f"{name},{'EXPORT' if number < 9 else f'P{number}'}" for number, name in enumerate(names)
    ]
    (tmp_path / "m.csv").write_text("\n".join(["file,Group", *rows]))
    listing = list_files(IngestSettings(source=str(tmp_path / "m.csv")))
    said = dict(in_sample(listing, listing.sources, Findings(), PLAIN))
    assert said["groups"] == "as manifests name them: 4 groups, the largest of 9 files (75%)"
    assert "'EXPORT', holds 9 of 12" in said["warning"]
    hidden = Pseudonymiser(KEY, hidden=True)
    said = dict(in_sample(listing, listing.sources, Findings(), hidden))
    assert "holds 9 of 12" in said["warning"]
    assert "EXPORT" not in said["warning"]
