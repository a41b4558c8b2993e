"""The whole job on a few real images: killed and resumed, verified, and submitted to a cluster."""

import csv
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

from echostill.eval.summary import summarise
from echostill.eval.tasks import task_infos
from echostill.jobs.stages import run_stage
from echostill.platform.errors import UsageError
from echostill.platform.models import create_encoder, save_weights
from echostill.platform.processes import host_name
from echostill.platform.stages import IN_RUN, STAGES
from echostill.platform.tables.lease import hold
from echostill.platform.tables.storage import sha256
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table
from echostill.platform.training.mlflow_files import database_uri

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLE = ROOT / "examples" / "quickstart"
PYTHON = sys.executable
CLI = [PYTHON, "-m", "echostill.jobs.cli.main"]
# Names that file systems take and that shells, URIs, globs and SQL read as something else.
AWFUL = "rough #3?x=1&y;%20 'a' \"b\" [c]*{d}~\u00e9."
RESULTS = ("pool", "scores", "coresets", "runs")

pytestmark = pytest.mark.ray


def take(source, target, rows):
    """Write a manifest of a few rows with absolute paths."""
    with source.open() as file:
        chosen = list(csv.DictReader(file))[::rows]
    for row in chosen:
        for column in ("file", "mask"):
            if row.get(column):
                row[column] = str(source.parent / row[column])
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, chosen[0])
        writer.writeheader()
        writer.writerows(chosen)
    return len(chosen)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    take(SAMPLE / "pool" / "manifest.csv", folder / "pool.csv", 24)
    take(SAMPLE / "benchmark" / "liver.csv", folder / "liver.csv", 9)
    take(SAMPLE / "benchmark" / "fetal_head.csv", folder / "fetal_head.csv", 20)
    torch.manual_seed(0)
    teacher = folder / "teacher.safetensors"
    save_weights(create_encoder("usfm-micro"), teacher, {})
    tasks = [
        {"name": "liver", "kind": "classification", "manifest": str(folder / "liver.csv")},
        {"name": "head", "kind": "segmentation", "manifest": str(folder / "fetal_head.csv")},
    ]
    short = {"batch_size": 4, "checkpoints": 3, "threads": 1}
    content = {
        "store": str(folder / "unused"),
        "teacher": {"model": "usfm-micro", "weights": str(teacher)},
        "student": "tinyusfm-micro",
        "ingest": {"source": str(folder / "pool.csv"), "files_per_shard": 8},
        "score": {"proxy": {"snapshots": 3, "training": {"steps": 3, **short}}, "workers": 1},
        "select": {"budget": 15},
        "distill": {"training": {"steps": 12, **short}},
        "evaluate": {"seeds": [0], "folds": 2, "tasks": tasks, "finetune": TUNED},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


TUNED = {"steps": 2, "batch_size": 4, "rates": [1.0]}


def command(configuration, store, *arguments, name="run"):
    return [*CLI, name, "--config", str(configuration), f"store={store}", *arguments]


def finish(arguments, cwd=ROOT, **options):
    return subprocess.run(
        arguments, cwd=cwd, capture_output=True, text=True, timeout=400, check=False, **options
    )


def finish_all(*commands, **options):
    """Run commands side by side: each waits for its imports most of the time."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda one: finish(one, **options), commands))


def kill_when(arguments, sign, sent, said):
    """Start a command and kill its driver as soon as a file appears that the pattern fits.

    What it says goes into the file ``said``; its exit code is returned.
    """
    folder, pattern = sign
    with said.open("wb") as sink:
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if any(folder.glob(pattern)):
            break
        time.sleep(0.02)
    assert process.poll() is None, "the command ended before it could be killed"
    process.send_signal(sent)
    return process.wait(60)


def ended_like_ctrl_c(code, said):
    """Hold that a command that was asked to end said so in one line, with no trace of any kind."""
    assert code == 1, said
    assert "interrupted" in said
    for trace in ("Traceback", "SIGTERM received", "PC: @", "*** Aborted", " @ 0x"):
        assert trace not in said, said


def digests(store):
    """Checksums of what a result is: tables and weights, not logs, caches or timings."""
    found = {}
    for folder in RESULTS:
        for path in sorted((store / folder).rglob("*")):
            if path.suffix in (".parquet", ".safetensors", ".jsonl"):
                found[path.relative_to(store).as_posix()] = sha256(path.read_bytes())
    return found


@pytest.fixture(scope="module")
def stores(configuration, tmp_path_factory):
    """One store from a run left alone, one from a run that was killed again and again.

    The second has a name that is easily taken for something else.
    """
    folder = tmp_path_factory.mktemp("stores")
    calm, rough = folder / "calm", folder / AWFUL
    with ThreadPoolExecutor(1) as beside:  # much of a run is waiting for processes to start
        left_alone = beside.submit(finish, command(configuration, calm))
        kill_again_and_again(configuration, rough, folder)
        done = left_alone.result()
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return calm, rough


def kill_again_and_again(configuration, rough, folder):
    """Run the pipeline to its end through a kill in each of four stages."""
    for pattern, sent in (
        ("records/pool/done/*.json", signal.SIGKILL),
        ("records/scores/done/*.json", signal.SIGTERM),
        ("runs/distilled-0/train/*/checkpoint_*/state.pt", signal.SIGKILL),
        ("reports/default/units/*.parquet", signal.SIGKILL),
    ):
        said = folder / "said.txt"
        code = kill_when(command(configuration, rough), (rough, pattern), sent, said)
        assert code != 0
        if sent == signal.SIGTERM:
            ended_like_ctrl_c(code, said.read_text())
    done = finish(command(configuration, rough))
    assert done.returncode == 0, done.stderr


def test_a_run_that_was_killed_gives_what_an_undisturbed_one_gives(stores):
    calm, rough = stores
    assert digests(calm) == digests(rough)
    results = [json.loads((s / "reports/default/evaluation.json").read_text()) for s in stores]
    for key in ("results", "estimates", "comparisons", "flags", "chance"):
        assert results[0][key] == results[1][key]


def test_predictions_on_disk_give_every_number_again(stores):
    written = json.loads((stores[0] / "reports/default/evaluation.json").read_text())
    table = Table.open(Store(str(stores[0])).predictions("default"), "evaluate").read()
    pairs = [tuple(pair) for pair in written["planned"]]
    again = summarise(table, task_infos(written["tasks"]), pairs, written["seed"])
    for key, values in json.loads(json.dumps(again)).items():
        assert written[key] == values, key
    assert {row["candidate"] for row in written["estimates"]} >= {"constant", "thumbnail"}
    assert {row["method"] for row in written["results"]} >= {"grid probe", "fine-tuned"}


def test_predictions_answer_queries(stores):
    query = "select candidate, avg(dice[1]) from predictions where task = 'head' group by candidate"
    done = finish([*CLI, "query", query, "--store", str(stores[0])])
    assert done.returncode == 0, done.stderr
    assert "thumbnail" in done.stdout


def test_the_report_stands_alone(stores):
    page = (stores[0] / "reports/default/report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="https://' not in page
    assert str(ROOT) not in page


def test_verify_and_a_second_run(stores, configuration):
    calm = stores[0]
    other = command(configuration, calm, "seed=1")
    verified, other = finish_all([*CLI, "verify", str(calm)], other)
    assert verified.returncode == 0
    again = finish(command(configuration, calm, "ingest.max_error_rate=0.5"))
    assert again.returncode == 0
    assert again.stderr.count("already done") >= 5
    assert other.returncode == 2
    assert "refused: seed 0 -> 1" in other.stderr
    assert "Traceback" not in other.stderr


def test_one_mlflow_run_per_run_whatever_was_killed(stores):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(database_uri(str(stores[1])))
    experiment = client.get_experiment_by_name("echostill")
    runs = client.search_runs([experiment.experiment_id])
    names = sorted(run.info.run_name for run in runs)
    assert names == ["distilled-0", "evaluate-default", "proxy"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    distilled = next(run for run in runs if run.info.run_name == "distilled-0")
    assert "weight_std" in distilled.data.metrics
    assert distilled.data.params["training.steps"] == "12"
    artifacts = [artifact.path for artifact in client.list_artifacts(distilled.info.run_id)]
    assert {"model.safetensors", "reconstructions.png"} <= set(artifacts)


def test_a_changed_byte_is_found(stores, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(stores[0], copy, ignore=shutil.ignore_patterns("cache", "mlartifacts"))
    part = next((copy / "scores").glob("part-*.parquet"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(bytes(data))
    found = finish([*CLI, "verify", str(copy)])
    assert found.returncode == 1
    assert part.name in found.stdout


CHANGED = [
    ("ingest", "files_per_shard=9", "files_per_shard 8 -> 9"),
    ("ingest", "organ=liver", "organ '' -> liver"),
    ("ingest", "stage_side=128", "stage_side 256 -> 128"),
    ("ingest", "quality.dark=0.1", "quality.dark 0.2 -> 0.1"),
    ("ingest", "source={benchmark}", "file"),
    ("score", "proxy.training.steps=4", "proxy.training.steps 3 -> 4"),
    ("score", "proxy.sample=10", "proxy.sample"),
    ("score", "mask_draws=3", "mask_draws"),
    ("score", "rows_per_shard=5", "rows_per_shard"),
    ("score", "seed=5", "seed 0 -> 5"),
    ("duplicates", "near_distance=3", "near_distance"),
    ("duplicates", "within_group=true", "within_group false -> true"),
    ("select", "budget=10", "budget 15 -> 10"),
    ("select", "method=random", "method coverage -> random"),
    ("select", "seed=9", "seed 0 -> 9"),
    ("select", "alpha=0.25", "alpha 0.5 -> 0.25"),
    ("select", "exclude={banned}", "excluded: "),
    ("distill", "training.steps=13", "training.steps 12 -> 13"),
    ("distill", "training.batch_size=2", "training.batch_size 4 -> 2"),
    ("distill", "decoder.dim=48", "decoder.dim 96 -> 48"),
    ("evaluate", "finetune.steps=3", "finetune.steps 2 -> 3"),
    ("evaluate", "neighbours=3", "neighbours"),
    ("evaluate", "folds=3", "folds 2 -> 3"),
]


@pytest.mark.parametrize(("stage", "change", "words"), CHANGED)
def test_a_dry_run_refuses_what_the_run_refuses(
    stores, configuration, tmp_path, stage, change, words
):
    banned = tmp_path / "banned.csv"
    row = Store(str(stores[0])).open_pool().read(["image_id"]).slice(0, 1)
    banned.write_text(f"image_id\n{row['image_id'][0].as_py()}\n")
    benchmark = configuration.parent / "liver.csv"
    overrides = [f"store={stores[0]}", change.format(banned=banned, benchmark=benchmark)]
    said = []
    for dry_run in (True, False):
        with pytest.raises(UsageError) as raised:
            run_stage(stage, str(configuration), overrides, dry_run=dry_run)
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert said[0].startswith("refused: ")
    assert words in said[0]
    assert "--overwrite" in said[0]
    # With --overwrite the dry run plans, and changes nothing.
    before = digests(stores[0])
    assert stage in run_stage(stage, str(configuration), overrides, dry_run=True, overwrite=True)
    assert digests(stores[0]) == before


def test_dry_runs_write_nothing(stores, configuration):
    """Of every stage, on a store that holds what each of them reads and makes."""
    store = stores[0]

    def everything():
        return {
            path.relative_to(store): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in store.rglob("*")
        }

    before = everything()
    more = {"cache": ["training.views_per_image=2"]}
    for stage in (*STAGES, "cache"):
        overrides = [f"store={store}", *more.get(stage, ())]
        run_stage(stage, str(configuration), overrides, dry_run=True, overwrite=True)
    assert everything() == before


def test_every_stage_of_a_run_has_its_start_and_its_end_in_the_event_log(stores):
    for store in stores:
        for stage in IN_RUN:
            lines = (store / "events" / f"{stage}.jsonl").read_text().splitlines()
            runs = {}
            for event in map(json.loads, lines):
                runs.setdefault(event["run"], []).append(event["event"])
            assert all(kinds[0] == "started" for kinds in runs.values())
            assert any(kinds[-1] == "finished" for kinds in runs.values())
            if store == stores[0]:  # nothing was killed there
                assert {kinds[-1] for kinds in runs.values()} <= {"finished", "failed"}
    watched = finish([*CLI, "watch", str(stores[0])])
    assert watched.returncode == 0
    for stage in IN_RUN:
        assert f" {stage}: starts" in watched.stdout
        assert f" {stage}: finished" in watched.stdout


def test_the_recipe_of_the_report_makes_the_same_again(stores, tmp_path):
    """The commands are taken from the page, as a reader would."""
    folder = stores[0] / "reports/default"
    page = html.unescape((folder / "report.html").read_text())
    listed = re.search(r"STORE=\.\.\..*?((?:\n(?:echostill|cp) .*)+)", page)
    commands = listed[1].strip().splitlines()
    assert [line.split()[1] for line in commands] == list(IN_RUN)
    text = (folder / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("runs/reproduced", str(tmp_path / "again")))
    for line in commands[: IN_RUN.index("select") + 1]:
        words = line.replace("$STORE/reports/default", str(tmp_path)).split()
        done = finish([*CLI, *words[1:]])
        assert done.returncode == 0, done.stderr
    made = digests(tmp_path / "again")
    assert {name for name in made if name.startswith("coresets/")}
    assert made == {n: d for n, d in digests(stores[0]).items() if n in made}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Ray head with token authentication, as `ray start` makes it."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("0123456789abcdef" * 2)
    temporary = Path("/tmp") / f"echo-{os.getpid()}"
    port, head_port = free_port(), free_port()
    environment = {
        **os.environ,
        # A job's `python` is the first one on the head's path.
        "PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    start = ["ray", "start", "--head", "--block", "--node-ip-address", "127.0.0.1"]
    start += ["--port", str(head_port), "--dashboard-port", str(port), "--num-cpus", "2"]
    start += ["--dashboard-agent-listen-port", str(free_port())]
    start += ["--temp-dir", str(temporary), "--object-store-memory", str(256 * 2**20)]
    head = subprocess.Popen(
        [str(Path(PYTHON).parent / start[0]), *start[1:]],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    ray = [str(Path(PYTHON).parent / "ray"), "job", "list", "--address", address]
    try:
        for _ in range(60):
            if finish(ray, env=environment).returncode == 0:
                break
            time.sleep(1)
        yield address, environment, f"127.0.0.1:{head_port}"
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)


def test_a_submitted_stage_runs_there_and_ends_as_it_ends(stores, configuration, cluster, tmp_path):
    address, environment, _ = cluster
    store = stores[0]
    there = ["--address", address]
    submit = [*CLI, "submit", "select", *there, "--config", str(configuration)]
    first = [*submit, "--submission-id", "first", f"store={store}", "name=submitted"]
    done = finish(first, env=environment, cwd=tmp_path)  # no repository here
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 of" in done.stdout
    assert "the cluster has 1 node of 2 CPUs" in done.stderr
    name = "part-00000.parquet"
    own = (store / "coresets/default" / name).read_bytes()
    assert (store / "coresets/submitted" / name).read_bytes() == own

    again, followed, wrong = finish_all(
        first,
        [*CLI, "submit", "--follow", "first", *there],
        [*submit, f"store={store}", "budgt=3"],
        env=environment,
        cwd=tmp_path,
    )
    assert again.returncode == 2
    assert "there is a job 'first' already" in again.stderr
    assert "`echostill submit --follow first" in again.stderr
    assert followed.returncode == 0
    assert followed.stdout == done.stdout

    assert wrong.returncode == 2
    assert "Did you mean 'budget'" in wrong.stdout

    ray = [str(Path(PYTHON).parent / "ray"), "job", "submit", *there]
    command = ["--", "echostill", "select", "--config", str(configuration), f"store={store}"]
    with hold(Store(str(store)).storage, "select", "coresets/held"):
        second = finish([*ray, *command, "name=held"], env=environment, cwd=tmp_path)
    assert second.returncode == 1
    assert f"is in use by `echostill select` on {host_name()}" in second.stdout
    job = [*ray, "--working-dir", str(ROOT), "--", "python"]
    script = ["jobs/select.py", "--config", str(configuration), f"store={store}", "name=plain"]
    code = "import platform; print('platform of Python:', platform.__file__)"
    plain, inside = finish_all([*job, *script], [*job, "-c", code], env=environment)
    assert plain.returncode == 0, plain.stdout + plain.stderr
    assert (store / "coresets/plain" / name).read_bytes() == own
    said = [line for line in inside.stdout.splitlines() if line.startswith("platform of Python:")]
    assert len(said) == 1, inside.stdout + inside.stderr
    assert "working_dir_files" not in said[0]


ASK_THE_HEAD = """
import os, sys
from echostill.platform.errors import UsageError
from echostill.platform.preflight.clusters import check_ray
for mode, token in (("token", sys.argv[2]), ("token", "wrong"), ("token", ""), ("", "")):
    os.environ |= {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}
    try:
        check_ray(sys.argv[1])
        print("entered")
    except UsageError as error:
        print(error)
"""


def test_without_the_token_the_cluster_is_not_entered(configuration, cluster, tmp_path):
    address, environment, head = cluster
    stranger = {**environment, "RAY_AUTH_TOKEN_PATH": "", "HOME": str(tmp_path)}
    stranger.pop("RAY_AUTH_TOKEN_PATH")
    done = finish(
        [*CLI, "submit", "select", "--address", address, "--config", str(configuration)],
        env=stranger,
    )
    assert done.returncode == 2
    assert f"the cluster at {address} wants its token" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    token = Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    asked = finish([PYTHON, "-c", ASK_THE_HEAD, head, token], env=stranger)
    assert asked.returncode == 0, asked.stderr
    entered, wrong, none, off = asked.stdout.splitlines()
    assert entered == "entered"
    assert f"the cluster at '{head}' (address) refuses the token from RAY_AUTH_TOKEN" in wrong
    assert "wants its token, and there is none" in none
    assert "wants its token: set RAY_AUTH_MODE=token" in off
