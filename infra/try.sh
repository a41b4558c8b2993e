#!/bin/sh
# Builds the image, brings compose.yaml up, submits the quickstart to it, fetches its report, and takes
# everything down again with its volumes. Prints sizes and times. Leaves nothing but OUTPUT/report.html
# and the bill of materials OUTPUT/python.cdx.json.
#
#   infra/try.sh [--quick] [--no-build] [--keep] [OUTPUT]
#
#   --quick     few training steps: minutes on two cores
#   --no-build  use the image that is there
#   --keep      leave the containers running
#
# COMPOSE (docker compose), ENGINE (docker) and the images' names (compose.yaml) can be set.
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
# shellcheck disable=SC2086  # COMPOSE may be two words
compose() { ${COMPOSE:-docker compose} --project-name echostill-try --file infra/compose.yaml "$@"; }
inside() { compose exec -T head "$@"; }

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
        compose logs 2>&1 | tail -n 100 > "$output/logs.txt" || true
        echo "== the last lines of all containers: $output/logs.txt" >&2
    fi
    if [ -z "$keep" ]; then
        step down
        compose down --volumes > /dev/null 2>&1 || echo "== compose down failed" >&2
        [ -z "${secrets:-}" ] || rm -rf "$secrets"
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
"$engine" run --rm --entrypoint cat "$image" /usr/share/sbom/python.cdx.json > "$output/python.cdx.json"

step up
compose up --detach
step "three nodes, and MLflow"
inside python - << 'END'
import sys, time, urllib.request
import ray

alive, limit = 0, time.monotonic() + 300
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
sys.exit(f"after 300 s {alive} of 3 nodes are there, or MLflow does not answer")
END

step submit
tar --create examples/quickstart | inside tar --extract --directory /home/echostill
set --
if [ -n "$quick" ]; then
    set -- score.proxy.training.steps=12 distill.training.steps=24 'evaluate.seeds=[0]' evaluate.finetune.steps=5
fi
inside echostill submit run --address http://127.0.0.1:8265 --working-dir /home/echostill \
    --config examples/quickstart/config.yaml store=s3://echostill/quickstart \
    tracking=http://mlflow:5000 "$@"

step report
inside python - > "$output/report.html" << 'END'
import sys
from pyarrow.fs import FileSystem

s3, path = FileSystem.from_uri("s3://echostill/quickstart/reports/default/report.html")
with s3.open_input_stream(path) as page:
    sys.stdout.buffer.write(page.read())
END
grep -q '</html>' "$output/report.html"
echo "== report: $output/report.html, $(wc -c < "$output/report.html") bytes"
