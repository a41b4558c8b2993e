"""What it costs to plan the ingest of a manifest: CPU seconds and memory before a file is read.

    .venv/bin/python benchmarks/manifest_plan.py --rows 3000000

The manifest (CSV: file, patient, organ, device, label; twelve files a patient) is written first and
its files do not exist: a file that is there costs one more look at it, as the ingest asks for its
size. Until the first file is read, an ingest lists the files, pseudonymises them under a key, cuts
the shards and keeps the listing in the store. Ray, which it starts then, is not counted.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from echostill.curation.ingestion.stage import IngestConfig, prepare_ingest

ORGANS = ("liver", "thyroid", "breast", "heart")
DEVICES = ("Logiq E9", "EPIQ 7", "Aplio 500")


def write_manifest(path: Path, rows: int) -> None:
    """Write a manifest of so many rows."""
    with path.open("w") as file:
        file.write("file,patient,organ,device,label\n")
        for row in range(rows):
            patient = row // 12
            file.write(
                f"site{row % 7}/patient{patient:06d}/frame{row:07d}.png,P{patient:06d},"
                f"{ORGANS[patient % 4]},{DEVICES[row // 1000 % 3]},{('no', 'yes')[patient % 2]}\n"
            )


def main() -> None:
    """Write a manifest, plan its ingest and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=300_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_manifest(place / "manifest.csv", rows)
        (place / "key").write_text("a key of this benchmark alone")
        config = IngestConfig(
            source=str(place / "manifest.csv"),
            store=str(place / "store"),
            key_file=str(place / "key"),
        )
        before = time.process_time()
        prepare_ingest(config, overwrite=False)
        seconds = time.process_time() - before
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{rows} rows: {seconds:.1f} CPU s ({1e6 * seconds / rows:.1f} us a row), {memory:.0f} MB"
    )


if __name__ == "__main__":
    main()
