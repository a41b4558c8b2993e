"""The coreset service under load: a synthetic store, sixteen clients, look-ups to SQL.

    python benchmarks/service_load.py --rows 100000 --seconds 10
    python benchmarks/service_load.py --json            # 3M x 768, minutes to build, then kept

It writes a store (streamed; kept in --folder for the next run), has the service make index and map,
starts the service as users do, and loads it from a process of its own, twice. First the clients
together offer --rate requests a second, each at random times, as people and programs do; a latency
runs from the moment at which a request was due, so one that waits for its client's last answer is
not flattered. Then, `saturated`, every client sends its next request when it has its answer: the
most that the service gives on the cores that it shares with the clients. Recall is measured through
the service against every feature exactly.

What is synthetic: features are 2,000 overlapping clusters of 48 latent dimensions, turned into the
wanted ones and normalised; pixels are one small picture; the coreset's clusters are the generating
ones, so that no hours of k-means stand before a measurement of the service.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
from machine import describe_machine
from service_store import CLUSTERS, DEVICES, ORGANS, build, identity

from echostill.curation.service.data.neighbours import ExactNeighbours, recall_of, unit_features
from echostill.platform.tables.store import Store

MIX = {"lookup": 0.45, "filter": 0.25, "neighbours": 0.25, "sql": 0.05}
RECALL_QUERIES = 300
NEIGHBOURS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rate", type=float, default=180.0, help="requests a second, offered")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of the two loads")
    parser.add_argument("--folder", default="runs/service_load")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--drive", help=argparse.SUPPRESS)  # the client process
    options = parser.parse_args()
    if options.drive:
        print(json.dumps(asyncio.run(drive(json.loads(options.drive)))))
        return
    root = Path(options.folder).absolute() / f"{options.rows}x{options.dimension}"
    print(
        f"{describe_machine()}\n"
        f"{options.rows} rows x {options.dimension}, {options.clients} clients"
    )
    built = timed(build, root, options.rows, options.dimension)
    print(f"store written in {built:.0f} s (0: it was there): {root}")
    indexed = timed(command, "serve", str(root), "--prepare-only")
    print(f"index and map made in {indexed:.0f} s")
    result = measure(root, options)
    result["index_seconds"] = round(indexed, 1)
    for key, value in result.items():
        print(f"{key:<24}{value}")
    if options.json:
        print(json.dumps(result))


def timed(function, *arguments) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "echostill.jobs.cli.main", *arguments], check=True)


def measure(root: Path, options: argparse.Namespace) -> dict[str, object]:
    started = time.perf_counter()
    service = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "echostill.jobs.cli.main",
            "serve",
            str(root),
            "--port",
            "0",
            "--no-access-log",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = listening(service)
        token = Path(f"{root}.token").read_text().strip()
        plan = {"port": port, "token": token, "rows": options.rows, "clients": options.clients}
        asyncio.run(until_ready(port))
        ready = time.perf_counter() - started
        drive_in_process({**plan, "seconds": min(5.0, options.seconds), "seed": 1})
        offered = {"rate": options.rate, "seconds": options.seconds, "seed": 2}
        load = drive_in_process({**plan, **offered})
        saturated = drive_in_process({**plan, "seconds": options.seconds, "seed": 3})
        resident = resident_bytes(service.pid)
        recall = asyncio.run(measured_recall(root, plan))
        return {
            "requests_per_second": load["requests_per_second"],
            "p50_ms": load["p50_ms"],
            "p99_ms": load["p99_ms"],
            "recall_at_10": round(recall, 4),
            "ready_seconds": round(ready, 2),
            "rss_gb": round(resident / 1e9, 3),
            "kinds": load["kinds"],
            "errors": load["errors"],
            "offered_per_second": options.rate,
            "saturated": saturated,
        }
    finally:
        service.terminate()
        service.wait(30)


def listening(service: subprocess.Popen[str]) -> int:
    assert service.stdout is not None
    for line in service.stdout:
        found = re.match(r"serving\s+http://127\.0\.0\.1:(\d+)/", line)
        if found:
            return int(found.group(1))
    raise SystemExit("the service did not start")


async def until_ready(port: int) -> None:
    connection = Connection(port, "")
    while (await connection.send(b"GET", "/readyz"))[0] != 200:
        await asyncio.sleep(0.05)


def drive_in_process(plan: dict[str, object]) -> dict:
    """Load from another process, so that client and service do not share an interpreter."""
    done = subprocess.run(
        [sys.executable, __file__, "--drive", json.dumps(plan)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


class Connection:
    """A kept-open HTTP/1.1 connection with no more than is needed, to leave the cores alone."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, method: bytes, path: str, body: bytes = b"") -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        reader, writer = self._streams
        head = (
            f" {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(method + head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        size = int(re.search(rb"content-length: (\d+)", answer, re.IGNORECASE).group(1))
        return int(answer[9:12]), await reader.readexactly(size)


async def drive(plan: dict) -> dict:
    """Run the clients and gather their latencies; without a rate, they do not pause."""
    found: dict[str, list[float]] = {kind: [] for kind in MIX}
    errors: dict[str, int] = {}
    pause = plan["clients"] / plan["rate"] if plan.get("rate") else 0.0
    end = time.perf_counter() + plan["seconds"]

    async def client(number: int) -> None:
        numbers = np.random.default_rng([plan["seed"], number])
        connection = Connection(plan["port"], plan["token"])
        due = time.perf_counter()
        while True:
            due = due + numbers.exponential(pause) if pause else time.perf_counter()
            if due >= end:
                return
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            kind, method, path, body = request(numbers, plan["rows"])
            status, _ = await connection.send(method, path, body)
            found[kind].append(time.perf_counter() - due)
            if status != 200:
                errors[f"{kind} {status}"] = errors.get(f"{kind} {status}", 0) + 1

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(plan["clients"])))
    elapsed = time.perf_counter() - started
    asked = [value for kind, values in found.items() if kind != "sql" for value in values]
    return {
        "requests_per_second": round(sum(map(len, found.values())) / elapsed, 1),
        "p50_ms": percentile(asked, 50),
        "p99_ms": percentile(asked, 99),
        "kinds": {
            kind: {
                "requests": len(values),
                "p50_ms": percentile(values, 50),
                "p99_ms": percentile(values, 99),
            }
            for kind, values in found.items()
        },
        "errors": errors,
    }


def percentile(seconds: list[float], share: float) -> float:
    return round(float(np.percentile(seconds, share)) * 1000, 2) if seconds else float("nan")


def request(numbers: np.random.Generator, rows: int) -> tuple[str, bytes, str, bytes]:
    """Draw one request of the mix."""
    kind = str(numbers.choice(list(MIX), p=list(MIX.values())))
    image = identity(numbers.integers(0, rows, 1))[0]
    if kind == "lookup":
        return kind, b"GET", f"/v1/images/{image}", b""
    if kind == "neighbours":
        return kind, b"GET", f"/v1/images/{image}/neighbours?k={NEIGHBOURS}", b""
    if kind == "filter":
        return kind, b"GET", f"/v1/coresets/default/samples?{filters(numbers)}", b""
    query = [
        f"select organ, count(*) from samples where cluster = {numbers.integers(0, CLUSTERS)} "
        "group by organ",
        f"select device, avg(gradient), sum(selected::int) from samples where organ = "
        f"'{ORGANS[numbers.integers(0, 8)]}' group by device order by 2",
        f"select image_id, dual_rank from coreset where selected and distance > "
        f"{numbers.random() * 0.3:.3f} order by dual_rank limit 20",
    ][numbers.integers(0, 3)]
    return kind, b"POST", "/v1/sql", json.dumps({"sql": query, "limit": 100}).encode()


def filters(numbers: np.random.Generator) -> str:
    parts = [f"limit={numbers.choice([20, 50])}"]
    parts.append(f"sort={numbers.choice(['image_id', 'dual_rank', '-distance', '-gradient'])}")
    parts.append(f"selected={numbers.choice(['true', 'true', 'any'])}")
    if numbers.random() < 0.6:
        parts.append(f"organ={ORGANS[numbers.integers(0, 8)]}")
    if numbers.random() < 0.3:
        parts.append(f"device={quote(DEVICES[numbers.integers(0, 6)])}")
    if numbers.random() < 0.3:
        parts.append(f"cluster={numbers.integers(0, CLUSTERS)}")
    if numbers.random() < 0.3:
        parts.append(f"min=distance:{numbers.random() * 0.3:.3f}")
    return "&".join(parts)


def resident_bytes(pid: int) -> int:
    """Memory in use by a process and its children; pages that they share are counted once."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if int(entry.name) != pid and parent != pid:
                continue
            found = re.search(r"^Pss:\s+(\d+) kB", (entry / "smaps_rollup").read_text(), re.M)
        except OSError:
            continue
        total += int(found.group(1)) * 1024 if found else 0
    return total


async def measured_recall(root: Path, plan: dict) -> float:
    """Compare the service's neighbours of some images with an exact search of all features."""
    rows = plan["rows"]
    wanted = np.sort(np.random.default_rng(9).choice(rows, min(RECALL_QUERIES, rows), False))
    scores = Store(str(root)).open_scores()
    queries, start = [], 0
    for block in unit_features(scores):
        inside = wanted[(wanted >= start) & (wanted < start + len(block))]
        queries.append(block[inside - start])
        start += len(block)
    exact = ExactNeighbours(np.concatenate(queries), NEIGHBOURS + 1)
    start = 0
    for block in unit_features(scores):
        exact.add(block, np.arange(start, start + len(block)))
        start += len(block)
    connection, found, true = Connection(plan["port"], plan["token"]), [], []
    for row, similarity, near in zip(wanted, exact.similarity, exact.rows, strict=True):
        others = near[np.argsort(-similarity)]
        true.append(others[others != row][:NEIGHBOURS])
        path = f"/v1/images/{identity(np.array([row]))[0]}/neighbours?k={NEIGHBOURS}"
        _, body = await connection.send(b"GET", path)
        # The lower half of an id is its row.
        ids = [item["sample"]["image_id"] for item in json.loads(body)["items"]]
        found.append([int(name[16:], 16) for name in ids])
    return recall_of(np.array(found), np.array(true))


if __name__ == "__main__":
    main()
