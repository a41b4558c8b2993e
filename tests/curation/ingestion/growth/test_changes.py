"""The listing of an ingest: what is kept of each file, and the digest of all."""

import hashlib
import json
from dataclasses import asdict

import pytest

from echostill.curation.deidentification.pseudonyms import Pseudonymiser
from echostill.curation.ingestion.growth.changes import LISTING_SCHEMA, listing
from echostill.curation.ingestion.manifests.files import Sources
from echostill.curation.ingestion.settings import Source
from echostill.platform.tables.table import decode_parquet

KEY = b"0123456789abcdef"
SHARDS = [
    [Source("/a/1.png", "1.png", organ="liver"), Source("/a/2.dcm", "2.dcm", id="two", size=7)],
    [Source("/a/é.tar", "é.tar", skip=("x.png",), study="s", viewer="a name")],
]


def described(source: Source, veil: Pseudonymiser) -> dict[str, str]:
    """What the digests of stores that exist are made of."""
    values = {k: v for k, v in asdict(source).items() if k not in ("file", "size", "problem")}
    return {k: veil.name(str(v)) for k, v in values.items() if v or k not in ("study", "viewer")}


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("shards", [SHARDS, SHARDS[:1], []])
def test_digests_are_those_of_every_file_shard_by_shard(
    shards: list[list[Source]], hidden: bool
) -> None:
    veil = Pseudonymiser(KEY, hidden)
    cut, sources = [], []
    for part in shards:
        cut.append(slice(len(sources), len(sources) + len(part)))
        sources += part
    data, digest = listing(Sources.of(sources, "/a"), cut, veil, 5)
    table = decode_parquet(data)
    plain = [[described(one, veil) for one in part] for part in shards]
    assert digest == hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    assert table.schema == LISTING_SCHEMA
    assert table["name"].to_pylist() == [entry["name"] for part in plain for entry in part]
    assert table["digest"].to_pylist() == [
        hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:16]
        for part in plain
        for entry in part
    ]
    assert table["shard"].to_pylist() == [5 + n for n, part in enumerate(shards) for _ in part]
    assert len(set(table["location"].to_pylist())) == sum(map(len, shards))


def test_values_of_a_source_are_its_attributes() -> None:
    for source in (one for part in SHARDS for one in part):
        assert source.values() == asdict(source)
        assert Source(**source.values()) == source
