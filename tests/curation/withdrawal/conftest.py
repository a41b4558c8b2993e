"""A tiny store with everything that names or shows an image, and a search that shares no code."""

import io
import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echostill.curation.deidentification.decisions import record as decide
from echostill.curation.deidentification.decisions import review_storage
from echostill.curation.deidentification.pseudonyms import key_check, keyed_hash
from echostill.curation.deidentification.review import REVIEW_SCHEMA, prepare_pictures
from echostill.curation.ingestion.patients.spelling import patient_group
from echostill.curation.selection.decided.pin_table import add_pin
from echostill.platform.imaging.images import content_hash, encode_png
from echostill.platform.tables.fingerprint import FINGERPRINT, Fingerprint
from echostill.platform.tables.schemas import (
    CORESET_SCHEMA,
    DUPLICATES_SCHEMA,
    LEAKS_SCHEMA,
    POOL_SCHEMA,
    QUARANTINE_SCHEMA,
    scores_schema,
)
from echostill.platform.tables.storage import sha256
from echostill.platform.tables.store import Store, finish_run
from echostill.platform.tables.table import (
    Table,
    encode_parquet,
    part_record,
    write_manifest,
    write_table,
)

KEY = b"the key of a hospital, kept elsewhere"
ROWS, IN_GROUP, PER_PART, BUDGET = 24, 4, 9, 8
COPY, ORIGINAL = 21, 5  # of different patients, with the same pixels
HELD_BACK = ROWS  # a frame of patient 1 that waits for review
BROKEN = ROWS + 1


class TinyStore:
    """What is in the store, by row."""

    key, copy, original, held_back = KEY, COPY, ORIGINAL, HELD_BACK

    def __init__(self, root, keyed=True):
        self.root, self.keyed = str(root), keyed
        self.store = Store(self.root)

    def image_id(self, row):
        return sha256(f"image {row}".encode())[:32]

    def patient(self, row):
        return f"Patient-{'ABCDEF1'[row // IN_GROUP]}{row // IN_GROUP}"

    def group(self, row):
        number = 1 if row == HELD_BACK else row // IN_GROUP
        if not self.keyed:
            return f"ward/{number}"
        return keyed_hash(KEY, "group", patient_group(f"Patient-{'ABCDEF1'[number]}{number}", KEY))

    def file(self, row):
        group = 1 if row == HELD_BACK else row // IN_GROUP
        name = f"ward {group}/cine.dcm" if group % 2 == 0 else f"ward {group}/Müller_{row}.png"
        return keyed_hash(KEY, "name", name) if self.keyed else name

    def source(self, row):
        cine = row < ROWS and (row // IN_GROUP) % 2 == 0
        return f"{self.file(row)}#{row % IN_GROUP}" if cine else self.file(row)

    def pixels(self, row):
        row = ORIGINAL if row == COPY else row
        return np.random.default_rng(row).integers(0, 256, (12, 16), dtype=np.uint8)

    def rows_of(self, group):
        return range(group * IN_GROUP, (group + 1) * IN_GROUP)

    def selected(self, row):
        return row % 3 == 0

    def needles(self, rows, groups=()):
        """What must not be found afterwards: by a name for it, some bytes."""
        found = {}
        for row in rows:
            found |= {f"id {row}": self.image_id(row), f"source {row}": self.source(row)}
            if row < ROWS:
                found[f"picture {row}"] = encode_png(self.pixels(row))
                found[f"pixels {row}"] = self.pixels(row).tobytes()
        found |= {f"group {number}": self.group(number * IN_GROUP) for number in groups}
        return {k: v.encode() if isinstance(v, str) else v for k, v in found.items()}

    def copied(self, root):
        shutil.copytree(self.root, root)
        return TinyStore(root, self.keyed)

    def search(self, needles):
        return search(self.store.storage, needles)

    def rows_naming(self, found):
        """Rows of the tables that are about an image, by what a search found of their ids."""
        counts = {}
        for needle, files in found.items():
            for file in files if needle.startswith("id") else ():
                place = file.rpartition("/")[0]
                if place in ("pool", "scores", "leaks", "review", "coresets/default"):
                    counts.setdefault(place, set()).add(needle)
        return counts

    def write(self):
        self._pool()
        self._scores()
        self._coreset("default", BUDGET)
        self._copies()
        self._decisions()
        self._training()
        self._rest()
        return self

    def _fingerprint(self, storage, stage, configuration, inputs):
        wanted = Fingerprint(configuration, "1", {}, inputs)
        values = {**wanted.as_dict(), "stage": stage, "about": {}}
        storage.write(FINGERPRINT, json.dumps(values, indent=1, sort_keys=True).encode())
        return wanted

    def _sharded(self, stage, table, quarantine, parts, schema, inputs):
        """Parts with records, as a sharded stage leaves them: rows, held rows and units of each."""
        wanted = self._fingerprint(table, stage, {"seed": 0}, inputs)
        entries, held_entries, counts = [], [], {"expected": 0, "held_back": 0}
        for number, (rows, held, units, notes) in enumerate(parts):
            name = f"part-{number:05d}.parquet"
            data = encode_parquet(pa.Table.from_pylist(rows, schema))
            table.write(name, data)
            record = {"shard": number, "part": part_record(name, len(rows), data)}
            record |= {"quarantine": None, "units": units, "fingerprint": wanted.digest}
            if notes:
                record["notes"] = notes
            if held:
                kept = encode_parquet(pa.Table.from_pylist(held, QUARANTINE_SCHEMA))
                quarantine.write(name, kept)
                record["quarantine"] = part_record(name, len(held), kept)
                held_entries.append(record["quarantine"])
                waiting = sum(row["error_class"] == "NeedsReview" for row in held)
                if waiting:
                    record["held_back"] = waiting
                    counts["held_back"] += waiting
            table.write(f"done/{number:05d}.json", json.dumps(record, sort_keys=True).encode())
            entries.append(record["part"])
        held = sum(entry["rows"] for entry in held_entries)
        printed = wanted.as_dict()
        write_manifest(
            quarantine, stage=stage, schema=QUARANTINE_SCHEMA, parts=held_entries,
            fingerprint=printed,
        )  # fmt: skip
        total = sum(entry["rows"] for entry in entries)
        extra = {"rows_in": total + held, "quarantined": held}
        extra |= {name: count for name, count in counts.items() if count}
        write_manifest(
            table, stage=stage, schema=schema, parts=entries, fingerprint=printed, extra=extra
        )

    def _pool(self):
        parts = []
        for start in range(0, ROWS, PER_PART):
            rows = [self._row(row) for row in range(start, min(start + PER_PART, ROWS))]
            parts.append((rows, [], [[len(rows), 1, 0]], {}))
        held = [
            self._refused("ingest", HELD_BACK, "NeedsReview", "text 0.9"),
            self._refused("ingest", BROKEN, "DecodeError", "is damaged; see " + self.source(2)),
        ]
        rows, _, units, _ = parts[1]
        notes = {"studies": [f"study {self.group(5)[:16]}", "study other"]}
        parts[1] = (rows, held, [*units, [2, 0, 1]], notes)
        inputs = {"files": "f" * 64}
        inputs |= {"key check": key_check(KEY)} if self.keyed else {}
        store = self.store
        self._sharded(
            "ingest", store.pool(), store.quarantine("ingest"), parts, POOL_SCHEMA, inputs
        )
        files = list(dict.fromkeys(self.file(row) for row in range(ROWS + 2)))
        listed = pa.table({"name": files, "digest": [sha256(one.encode())[:16] for one in files]})
        store.sources().write("files.parquet", encode_parquet(listed))
        counted = {"count": 6, "images": ROWS, "largest": self.group(4), "largest_images": 4}
        summary = {"groups": {**counted, "suspicious": False}, "passed_over": {}, "warnings": []}
        store.sources().write("summary.json", json.dumps(summary, indent=1).encode())

    def _row(self, row):
        pixels = self.pixels(row)
        return {
            "image_id": self.image_id(row),
            "group_id": self.group(row),
            "source": self.source(row),
            "frame": row % IN_GROUP,
            "image": encode_png(pixels),
            "width": 16,
            "height": 12,
            "content_hash": content_hash(pixels),
            "thumbnail": pixels.tobytes().ljust(512, b"\0"),
            "colour": False,
        }

    def _refused(self, stage, row, error, message):
        return {
            "stage": stage,
            "id": self.image_id(row) if row != BROKEN else self.source(row),
            "source": self.source(row),
            "error_class": error,
            "message": message,
        }

    def _scores(self):
        lost = 17  # could not be decoded when it was scored
        rows = [
            {
                "image_id": self.image_id(row),
                "feature": [np.float16(row), np.float16(1)],
                "gradient_mean": float(row),
                "gradient": [float(row)],
            }
            for row in range(ROWS)
        ]
        parts = []
        for start in range(0, ROWS, PER_PART):
            stop = min(start + PER_PART, ROWS)
            own = [rows[row] for row in range(start, stop) if row != lost]
            held, units = [], [[stop - start, 1, 0]]
            if start <= lost < stop:
                held = [{**self._refused("score", lost, "DecodeError", "is damaged"), "source": ""}]
                units = [[lost - start, 1, 0], [1, 0, 1]]
                units += [[stop - lost - 1, 1, 0]] if stop > lost + 1 else []
            parts.append((own, held, units, {}))
        store, pool = self.store, Table.open(self.store.pool(), "ingest")
        inputs = {"pool": pool.digest}
        self._sharded(
            "score", store.scores(), store.quarantine("score"), parts, scores_schema(2, 1), inputs
        )
        configuration = {"rows_per_shard": 2048, "seed": 0}
        store.scores().write("configuration.json", json.dumps(configuration).encode())
        self.scored = [row for row in range(ROWS) if row != lost]

    def _coreset(self, name, budget):
        store = self.store
        inputs = {
            "pool": store.open_pool().digest,
            "scores": store.open_scores().digest,
        }
        rows = [
            {
                "image_id": self.image_id(row),
                "group_id": self.group(row),
                "cluster": row % 2,
                "quota": BUDGET // 2,
                "selected": self.selected(row),
                "reason": "near the middle of its cluster",
            }
            for row in sorted(self.scored, key=self.image_id)
        ]
        storage = store.coreset(name)
        wanted = self._fingerprint(storage, "select", {"name": name, "budget": budget}, inputs)
        write_table(
            storage,
            pa.Table.from_pylist(rows, CORESET_SCHEMA),
            stage="select",
            fingerprint=wanted.as_dict(),
            extra={"budget": sum(row["selected"] for row in rows)},
        )

    def _copies(self):
        ids = sorted((self.image_id(row), row) for row in (4, 9, 10))
        group, kept = ids[0][0], self.image_id(4)
        rows = [
            {
                "image_id": name,
                "duplicate_group": group,
                "kept": name == kept,
                "kept_id": kept,
                "kind": "" if name == kept else "near",
                "distance": 0.0 if name == kept else 3.0,
                "reason": "kept: stands for them" if name == kept else f"near copy of {kept}",
            }
            for name, _ in ids
        ]
        pair = [self.image_id(6), self.image_id(22)]
        rows += [
            {
                "image_id": name,
                "duplicate_group": min(pair),
                "kept": name == pair[0],
                "kept_id": pair[0],
                "reason": f"copy of {pair[0]}",
            }
            for name in sorted(pair)
        ]
        pool = {"pool": self.store.open_pool().digest}
        storage = self.store.duplicates()
        wanted = self._fingerprint(storage, "duplicates", {}, pool)
        table = pa.Table.from_pylist(rows, DUPLICATES_SCHEMA)
        write_table(storage, table, stage="duplicates", fingerprint=wanted.as_dict())
        leak = {"image_id": self.image_id(7), "benchmark": "b", "benchmark_image": "x.png"}
        digest = self.store.open_pool().digest
        write_table(
            self.store.leaks(),
            pa.Table.from_pylist([leak], LEAKS_SCHEMA),
            stage="leakcheck",
            fingerprint={"code": "1", "inputs": pool, "digest": digest},
        )

    def _decisions(self):
        add_pin(self.store, "pin", [self.image_id(4), self.image_id(8)], author="a", reason="r")
        add_pin(self.store, "ban", [self.image_id(7)], author="a", reason="r")
        row = {"image_id": self.image_id(HELD_BACK), "source": self.source(HELD_BACK)}
        row |= {"group_id": self.group(HELD_BACK), "cleaned": "c" * 64, "reason": "text"}
        table = pa.Table.from_pylist([row], schema=REVIEW_SCHEMA)
        write_table(review_storage(self.store), table, stage="ingest", fingerprint={})
        decide(self.store, "approve", {self.image_id(HELD_BACK): "c" * 64}, reason="r", by="b")
        pictures = prepare_pictures(self.store)
        pictures.write(f"{self.image_id(HELD_BACK)}.png", encode_png(self.pixels(HELD_BACK)))
        pictures.write("contact-sheet-0a.png", encode_png(self.pixels(5)))
        pictures.write("review.html", f"<p>{self.image_id(HELD_BACK)}".encode())

    def _training(self):
        store = self.store
        pool, coreset = store.open_pool().digest, store.open_coreset("default").digest
        for name, stage, inputs in (
            ("proxy", "proxy", {"pool": pool}),
            ("student-0", "distill", {"pool": pool, "coreset": coreset}),
            ("other-0", "distill", {"pool": "0" * 64, "coreset": "1" * 64}),
        ):
            run = store.run(name)
            wanted = self._fingerprint(run, stage, {"seed": 0}, inputs)
            run.write("model.safetensors", f"weights of {name}".encode())
            run.write("reconstructions.png", encode_png(self.pixels(6)))
            run.write("mlflow.json", json.dumps({"uri": "", "run_id": f"of-{name}"}).encode())
            files = ["model.safetensors", "reconstructions.png"]
            finish_run(run, stage=stage, files=files, fingerprint=wanted)
        report = store.report("default")
        wanted = Fingerprint({}, "1", {"student": sha256(b"weights of student-0")}, {})
        report.write(FINGERPRINT, json.dumps(wanted.as_dict()).encode())
        report.write("evaluation.json", b"{}")
        report.write("report.html", encode_png(self.pixels(5)))
        files = ["evaluation.json", "report.html"]
        finish_run(report, stage="report", files=files, fingerprint=wanted)

    def _rest(self):
        store = self.store.storage
        for key, rows in (("a", [4, 5, 6]), ("b", [0, 1])):
            buffer = io.BytesIO()
            np.save(buffer, np.stack([self.pixels(row) for row in rows]))
            store.write(f"cache/{key}.npy", buffer.getvalue())
            words = {"ids": [self.image_id(row) for row in rows], "organs": [], "devices": []}
            store.write(f"cache/{key}.words.json", json.dumps(words).encode())
        cache = store.at("teacher-cache/default")
        cache.write("part-00000/pooled.npy", b"features")
        entry = {"file": "part-00000/pooled.npy", "bytes": 8, "sha256": sha256(b"features")}
        held = {"image_ids": [self.image_id(6)], "files": [entry], "fingerprint": {"digest": "0"}}
        cache.write("manifest.json", json.dumps(held).encode())
        lines = [
            {"event": "started", "stage": "score"},
            {"event": "failed", "message": f"'{self.image_id(5)}' of {self.source(5)} is damaged"},
        ]
        text = "".join(json.dumps({**line, "time": "t"}) + "\n" for line in lines)
        store.write("events/score.jsonl", text.encode())
        record = {"to": "/elsewhere", "form": "csv", "coreset": "default", "at": "2026-01-01"}
        record["digest"] = self.store.open_coreset("default").digest
        store.write("exports/0a.json", json.dumps(record).encode())
        if store.is_local:
            path = Path(store.local_path("mlflow.db"))
            with sqlite3.connect(path) as connection:
                connection.execute("CREATE TABLE tags (key TEXT, value TEXT)")
                connection.execute("INSERT INTO tags VALUES ('worst', ?)", (self.image_id(6),))
            connection.close()
            store.write("mlartifacts/of-student-0/artifacts/reconstructions.png", b"a picture")


def search(storage, needles):
    """Find bytes in every file of a store, decoded: files by needle."""
    found = {name: set() for name in needles}
    for file in storage.list(recursive=True):
        contents = [file.encode(), *decoded(file, storage.read(file))]
        for name, needle in needles.items():
            if any(needle in content for content in contents):
                found[name].add(file)
    return {name: files for name, files in found.items() if files}


def decoded(name, data):
    if not name.endswith(".parquet"):
        text = data.decode("utf-8", "ignore")
        escaped = text.encode().decode("unicode_escape", "ignore") if "\\u" in text else ""
        return [data, escaped.encode("utf-8", "ignore")]
    table = pq.read_table(io.BytesIO(data))
    values = []
    for column in table.columns:
        for value in column.to_pylist():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, str | bytes):
                    values.append(one.encode() if isinstance(one, str) else one)
    return [*values, data]


@pytest.fixture
def tiny_store(tmp_path, monkeypatch):
    """Make a store of any root; derived files go into a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda root=tmp_path / "store", keyed=True: TinyStore(root, keyed).write()
