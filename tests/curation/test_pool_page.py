"""The commands of docs/pool.md, in the order of the page, on tiny pictures; one of docs/privacy.md.

Ingests run in this process. Scores are numbers made from the id, since a teacher and a proxy would
take minutes: `echostill score` of the page is only parsed, in tests/test_docs.py.
"""

import hashlib
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from echostill.jobs.cli.main import app
from echostill.platform.tables.schemas import scores_schema
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import encode_parquet, part_record, write_manifest
from echostill.platform.tables.verify import verify_store
from echostill.platform.tables.versions import VERSIONS, Growth, version_entries, versions

DOCS = Path(__file__).resolve().parents[2] / "docs"
PLAIN = ("deidentify.pixels=off", "deidentify.sources=names", "progress=false")  # noise has no fan


def commands(page, name):
    """The page's commands of a name, in order, each as words without the program."""
    text = "\n".join(re.findall(r"^```bash\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S))
    found = [shlex.split(line) for line in text.splitlines()]
    return [words[1:] for words in found if words[:2] == ["echostill", name]]


def run(*words):
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.stdout


def write_folder(folder, seeds, organ="liver"):
    """Write a picture of each seed, and a manifest with their organ."""
    folder.mkdir(parents=True)
    for seed in seeds:
        pixels = np.random.default_rng(seed).integers(0, 255, (16, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    lines = ["file,organ", *(f"{seed}.png,{organ}" for seed in seeds)]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")


def write_scores(root):
    """Write scores as the stage leaves them: for each version of the pool a further part."""
    store = Store(root)
    pool = store.open_pool()
    grown = versions(pool)
    ids = pool.read(["image_id"])["image_id"].to_pylist()
    schema, parts, known = scores_schema(2, 1), [], 0
    for number, version in enumerate(grown):
        rows = [score(image_id) for image_id in ids[known : version.rows]]
        data = encode_parquet(pa.Table.from_pylist(rows, schema=schema))
        name = f"part-{number:05d}.parquet"
        store.scores().write(name, data)
        parts.append(part_record(name, len(rows), data))
        known = version.rows
    history = [Growth(number + 1, {"pool": one.digest}) for number, one in enumerate(grown)]
    extra = {"rows_in": len(ids), "quarantined": 0}
    if entries := version_entries(parts, history):
        extra[VERSIONS] = entries
    first = grown[0].digest
    made = {"weights": {}, "digest": first, "inputs": {"pool": first}}
    write_manifest(
        store.scores(), stage="score", schema=schema, parts=parts, fingerprint=made, extra=extra
    )


def score(image_id):
    a, b, c = (byte / 255 for byte in hashlib.sha256(image_id.encode()).digest()[:3])
    numbers = {"gradient_mean": c, "gradient_std": 0.0, "gradient": [c], "reconstruction_error": c}
    return {"image_id": image_id, "feature": [a, b], **numbers}


def chosen(root, name):
    rows = Store(root).open_coreset(name).read(["image_id", "selected"]).to_pylist()
    return {row["image_id"] for row in rows if row["selected"]}


@pytest.fixture(autouse=True)
def here(ingest_in_process, monkeypatch, tmp_path):
    monkeypatch.setenv("ECHOSTILL_KEY", "a key of thirty-two characters, ok")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_pool_and_its_coreset_grow_and_an_image_is_withdrawn(tmp_path):
    write_folder(tmp_path / "data" / "january", range(20))
    run("ingest", "store=runs/mine", "source=[data/january]", *PLAIN)
    write_scores("runs/mine")
    run("select", "store=runs/mine", "name=february", "budget=3", "progress=false")

    write_folder(tmp_path / "data" / "february", range(20, 40))
    [ingest] = commands("pool.md", "ingest")
    run(*(word.replace("/data/", "data/") for word in ingest), *PLAIN)
    pool = Store("runs/mine").open_pool()
    assert pool.rows == 40
    assert len(versions(pool)) == 2

    write_scores("runs/mine")
    [select] = commands("pool.md", "select")
    run(*select, "progress=false")
    members = chosen("runs/mine", "march")
    assert members > chosen("runs/mine", "february")
    assert len(members) == 4

    gone = min(members)
    [withdraw] = [words for words in commands("privacy.md", "withdraw") if "--image" in words]
    withdraw[withdraw.index("--image") + 1] = gone
    run(*withdraw)
    assert chosen("runs/mine", "march") == members - {gone}
    assert gone not in Store("runs/mine").open_pool().read(["image_id"])["image_id"].to_pylist()
    found = verify_store("runs/mine")
    assert found.sound, found.problems


@pytest.mark.slow
def test_two_stores_become_one_that_says_who_brought_what(tmp_path):
    write_folder(tmp_path / "bonn", range(12), organ="Leber")
    write_folder(tmp_path / "ulm", range(10, 20))  # two pictures of bonn
    for name in ("bonn", "ulm"):
        run("ingest", f"store=runs/{name}", f"source={name}/list.csv", *PLAIN)
    dry, merge = commands("pool.md", "merge")
    run(*dry)
    assert not Path("runs/all").exists()
    run(*merge)
    pool = Store("runs/all").open_pool().read(["organ"])["organ"].to_pylist()
    assert pool == ["liver"] * 20
    write_scores("runs/all")
    run("select", "store=runs/all", "name=both", "budget=20", "progress=false")
    contributors, origins = (run(*words, "--csv") for words in commands("pool.md", "query"))
    assert contributors.splitlines() == [
        "store,merged,duplicates,licence",
        "bonn,12,0,",
        "ulm,8,2,",
    ]
    # An image that both had counts for both.
    assert sorted(origins.splitlines()[1:]) == ["bonn,12", "ulm,10"]
