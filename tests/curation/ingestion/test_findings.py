from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from echostill.curation.ingestion.findings import Findings, describe_counts
from echostill.curation.ingestion.identity import digest
from echostill.platform.imaging.images import NoImageError

WORDS = st.sampled_from(["CT (DICOM)", "masks or label maps", ".txt"])


@given(st.lists(st.tuples(st.integers(0, 9), WORDS, st.integers(0, 3))), st.integers(1, 3))
def test_shards_that_are_read_again_are_counted_once(files, times):
    """Two shards, each any number of times, as after a retry: the sum is that of the files."""
    expected: Counter[str] = Counter()
    notes = []
    for shard in range(2):
        findings = Findings()
        for number, kind, members in dict.fromkeys(files):
            name = digest("file", str(shard), str(number), kind, str(members))
            findings.company(name, NoImageError("", kind))
            findings.members(name, {kind: members})
            expected += Counter({kind: 1, f"{kind} in archives": members})
        notes += [findings.notes()] * times
    assert +Findings(notes).passed_over() == +expected


def test_groups_that_are_doubtful_are_told():
    findings = Findings()
    for study in range(3):
        for _ in range(4):
            findings.group(f"group{study}", f"study{study}", nobody=False)
    assert findings.warnings() == []
    findings.group("another patient", "study1", nobody=False)
    findings.group("a study", "", nobody=True)
    findings.group("a study", "", nobody=True)
    placeholder, shared = Findings([findings.notes()]).warnings()
    assert "(1 study)" in placeholder
    assert "1 study has images under two or more patient ids" in shared


def test_names_of_a_json_that_are_not_used_are_told():
    findings = Findings()
    assert findings.unused_keys() == ""
    findings.keys({"caption", "age"})
    assert findings.unused_keys().endswith("not used: age, caption")


def test_counts_in_words():
    assert describe_counts({".pdf": 3, ".zip": 9, ".doc": 3, "none": 0}) == "9 .zip, 3 .doc, 3 .pdf"
    assert describe_counts({}) == ""
