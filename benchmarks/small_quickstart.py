"""The quickstart, with fewer images, steps and tasks, for benchmarks that run it many times."""

import csv
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "quickstart"


def configure(folder: Path, images: int, rows: int, steps: int) -> Path:
    """Write a small quickstart: some of its images, its teacher, one of its tasks."""
    import yaml

    def some(source: Path, count: int) -> str:
        with source.open() as file:
            reader = csv.DictReader(file)
            lines = list(reader)
        chosen = lines[:: max(len(lines) // count, 1)][:count]
        target = folder / f"{source.stem}.csv"
        with target.open("w", newline="") as file:
            writer = csv.DictWriter(file, reader.fieldnames or ())
            writer.writeheader()
            for line in chosen:
                for name in {"file", "mask"} & set(line):
                    line[name] = line[name] and str(source.parent / line[name])
                writer.writerow(line)
        return str(target)

    pool = some(EXAMPLE / "pool" / "manifest.csv", images)
    liver = some(EXAMPLE / "benchmark" / "liver.csv", 60)
    training = {"steps": steps, "batch_size": 8, "learning_rate": 0.016, "checkpoints": 20}
    content = {
        "seed": 0,
        "teacher": {
            "model": "usfm-micro",
            "weights": str(EXAMPLE / "teacher" / "usfm-micro.safetensors"),
        },
        "student": "tinyusfm-micro",
        "ingest": {
            "source": [pool],
            "exclude": [liver],
            "files_per_shard": rows,
            "deidentify": {"pixels": "off"},
        },
        "score": {
            "proxy": {
                "snapshots": 3,
                "training": {"steps": 30, "batch_size": 16, "learning_rate": 0.016},
            },
            "rows_per_shard": rows,
        },
        "select": {"budget": images // 2},
        "distill": {
            "students": [{"name": "distilled"}],
            "training": training,
        },
        "evaluate": {
            "seeds": [0, 1],
            "tasks": [{"name": "liver", "kind": "classification", "manifest": liver}],
            "finetune": {"steps": 20},
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
