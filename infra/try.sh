#!/bin/sh
# Builds the image, brings compose.yaml up, submits the quickstart to it, checks what came of it, and
# takes everything down again with its volumes. Prints sizes and times. Leaves nothing but
# OUTPUT/report.html and the bill of materials OUTPUT/python.cdx.json.
#
#   infra/try.sh [--quick] [--no-build] [--keep] [OUTPUT]
#
#   --quick     few training steps: minutes on two cores
#   --no-build  use the image that is there
#   --keep      leave the containers running
#
# COMPOSE (docker compose), ENGINE (docker), the images' names and the ports (compose.yaml) can be
# set, and LIMIT, the most seconds that the quickstart may take (7200; with --quick 3600).
set -eu

quick='' build=yes keep='' output=build/try
for argument in "$@"; do
    case $argument in
        --quick) quick=yes ;;
        --no-build) build='' ;;
        --keep) keep=yes ;;
        -*) echo "unknown option $argument: there are --quick, --no-build and --keep" >&2; exit 2 ;;
        *) output=$argument ;;
    esac
done
cd "$(dirname "$0")/.."
mkdir -p "$output"
engine=${ENGINE:-docker}
image=${IMAGE:-echostill:0.1.0}
store=s3://echostill/quickstart
job=quickstart
# shellcheck disable=SC2086  # COMPOSE may be two words
compose() { ${COMPOSE:-docker compose} --project-name echostill-try --file infra/compose.yaml "$@"; }
# The coreset service has a profile, since it can start only where a store is; with it compose knows all.
all() { compose --profile service "$@"; }
inside() { compose exec -T head "$@"; }
clear() { all down --volumes > /dev/null 2>&1; }
fail() { echo "== $*" >&2; exit 1; }
again() {  # again SECONDS COMMAND: until it succeeds
    end=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$end" ] || fail "not within its time: $*"
        sleep 5
    done
}

started=$(date +%s)
step() {
    now=$(date +%s)
    [ -z "${doing:-}" ] || echo "== $doing: $((now - since)) s"
    doing=$1 since=$now
}
finish() {
    status=$?
    trap - EXIT
    if [ "$status" -ne 0 ]; then
        echo "== failed: $doing" >&2
        for name in head worker mlflow service postgres s3 bucket; do
            all logs --tail 60 "$name" 2>&1 || true
        done > "$output/logs.txt"
        echo "== the last lines of all containers: $output/logs.txt" >&2
    fi
    if [ -z "$keep" ]; then
        step down
        clear || echo "== compose down failed" >&2
        [ -z "${secrets:-}" ] || rm -rf "$secrets"
    elif [ -n "${secrets:-}" ]; then
        echo "== it keeps running; its secrets: $secrets"
    fi
    step end
    echo "== all: $(($(date +%s) - started)) s"
    exit "$status"
}
doing=start since=$started
trap finish EXIT
trap 'exit 130' INT TERM

if [ -z "${SECRETS:-}" ]; then
    secrets=$(mktemp -d)
    SECRETS=$(infra/secrets.sh "$secrets")
    export SECRETS
fi

if [ -n "$build" ]; then
    step build
    compose build head
fi
step image
echo "== size: $("$engine" image inspect --format '{{.Size}}' "$image" | awk '{printf "%.2f GB", $1 / 1e9}')"
"$engine" run --rm -i --entrypoint sh "$image" -s << 'END' || fail "the image is not what README.md says"
[ "$(id -u)" = 1000 ] || { echo "it runs as user $(id -u)"; exit 1; }
for tool in cc gcc g++ ld make cmake git pip pip3; do
    if command -v "$tool"; then exit 1; fi
done
for python in python /usr/local/bin/python3 /usr/bin/python3; do
    command -v "$python" > /dev/null || continue
    if "$python" -c 'import pip' 2> /dev/null; then echo "$python has pip"; exit 1; fi
done
[ -s /usr/share/sbom/debian.tsv ]
END
"$engine" run --rm --entrypoint cat "$image" /usr/share/sbom/python.cdx.json > "$output/python.cdx.json"
echo "== no root, no build tools; bill of materials: $(grep -c '"purl"' "$output/python.cdx.json") packages"

step up
clear || true  # what a trial left that was killed
compose up --detach
step "three nodes, and MLflow"
# On a busy machine a node of Ray may give up its start. Podman 4 does not start a container again
# while one that it depends on is down, or where something was run in it: hence the short looks
# before the long one, and the start of what has stopped.
answers() {
    inside echostill-health > /dev/null 2>&1 && return
    compose start head > /dev/null 2>&1 || true
    return 1
}
again 900 answers
nodes() {
    compose start mlflow worker > /dev/null 2>&1 || true
    inside python - << 'END'
import sys, time, urllib.request
import ray

alive, limit = 0, time.monotonic() + 120
while time.monotonic() < limit:
    try:
        if not ray.is_initialized():
            ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
        alive = sum(node["Alive"] for node in ray.nodes())
        urllib.request.urlopen("http://mlflow:5000/health", timeout=5).read()
        if alive == 3:
            sys.exit(0)
    except OSError:  # the head, or MLflow, does not answer yet
        pass
    time.sleep(2)
sys.exit(f"{alive} of 3 nodes are there, or MLflow does not answer")
END
}
again 900 nodes

step submit
tar --create examples/quickstart | inside sh -c 'mkdir /tmp/try && tar --extract --directory /tmp/try'
limit=${LIMIT:-7200}
set --
if [ -n "$quick" ]; then
    limit=${LIMIT:-3600}
    set -- score.proxy.training.steps=12 distill.training.steps=24 'evaluate.seeds=[0]' evaluate.finetune.steps=5
fi
code=0
inside timeout "$limit" echostill submit run --address http://127.0.0.1:8265 --submission-id $job \
    --working-dir /tmp/try --config examples/quickstart/config.yaml store=$store \
    tracking=http://mlflow:5000 "$@" || code=$?
[ "$code" -ne 124 ] || fail "the quickstart was not done within $limit s (LIMIT)"
[ "$code" -eq 0 ] || fail "the quickstart ended with exit code $code"

step verify
inside echostill verify $store

step report
inside python - > "$output/report.html" << END
import sys
from pyarrow.fs import FileSystem

s3, path = FileSystem.from_uri("$store/reports/default/report.html")
with s3.open_input_stream(path) as page:
    sys.stdout.buffer.write(page.read())
END
grep -q '</html>' "$output/report.html"
echo "== report: $output/report.html, $(wc -c < "$output/report.html") bytes"

step "MLflow and the job name each other"
inside python - $job << 'END'
import sys
from mlflow import MlflowClient
from ray.job_submission import JobSubmissionClient

(job,) = sys.argv[1:]
jobs = JobSubmissionClient("http://127.0.0.1:8265")
assert jobs.get_job_status(job) == "SUCCEEDED", jobs.get_job_status(job)
log, mlflow = jobs.get_job_logs(job), MlflowClient("http://mlflow:5000")
runs = mlflow.search_runs([each.experiment_id for each in mlflow.search_experiments()])
named = [run for run in runs if run.info.run_id in log]
for run in named:
    assert run.info.status == "FINISHED", (run.info.run_name, run.info.status)
    assert run.data.tags["ray.submission_id"] == job, run.data.tags
    assert run.data.tags["ray.dashboard"].endswith(f"/#/jobs/{job}"), run.data.tags
names = {run.info.run_name for run in named}
assert {"proxy", "distilled-0", "MIM-only-0"} <= names, names
print(f"== {len(named)} of {len(runs)} runs are named by the job's log, and name the job:", *sorted(names))
END

step "the coreset service"
STORE=$store all up --detach service
question() {
    all exec -T service python - << 'END'
import json, pathlib, sys, time, urllib.error, urllib.request


def ask(path, body=None, token=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"http://service:8420{path}", data, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


limit = time.monotonic() + 120
while True:
    try:
        ask("/readyz")
        break
    except OSError as error:  # it starts, or builds its index
        if time.monotonic() > limit:
            sys.exit(f"the service is not ready: {error}")
        time.sleep(2)
try:
    ask("/v1/coresets")
except urllib.error.HTTPError as error:
    assert error.code == 401, error.code
else:
    raise AssertionError("the service answers without a token")
token = pathlib.Path("/run/secrets/service_token").read_text().strip()
coresets = ask("/v1/coresets", token=token)
counted = ask("/v1/sql", {"sql": "select count(*) as images from pool"}, token)
assert "default" in json.dumps(coresets), coresets
print("== coresets:", json.dumps(coresets)[:200])
print("== images in the pool:", json.dumps(counted)[:200])
END
}
again 900 question
