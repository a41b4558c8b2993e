"""infra/monitoring: rules and dashboard name metrics that the code has, with their labels."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from echostill.curation.service.http.security import Meters
from echostill.platform.cluster.metrics import SHARDS, TRAINING

MONITORING = Path(__file__).parents[1] / "infra" / "monitoring"
# Ray's own, of each node: no package lists them, and a cluster with GPUs is needed to see them all.
RAY = {"ray_node_cpu_utilization", "ray_node_gpus_utilization", "ray_node_mem_total"}
LABELS_OF_ALL = {"le"}


def rules():
    (group,) = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return group["rules"]


def panels():
    return json.loads((MONITORING / "dashboard.json").read_text())["panels"]


def metrics():
    """Every exported name with its labels."""
    found = {metric.exported: set(metric.labels) for metric in (*SHARDS, *TRAINING)}
    registry = Meters().registry
    for collector in registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
        for suffix in suffixes.get(collector.type, [""]):
            found[collector.name + suffix] = None
    service = {"requests_total": "method route status", "request_seconds_bucket": "route"}
    for name, labels in service.items():
        found[f"echostill_{name}"] = set(labels.split())
    found |= {"echostill_jobs": {"state"}}
    found |= dict.fromkeys(RAY)
    for rule in rules():
        if "record" in rule:
            kept = re.findall(r"by \(([\w, ]+)\)", rule["expr"])
            found[rule["record"]] = set(kept[0].split(", "))
    return found


def expressions():
    for rule in rules():
        yield rule.get("alert", rule.get("record")), rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_that_is_read_is_written(where, expression):
    known = metrics()
    bare = re.sub(r'"[^"]*"', '""', expression)
    words = re.findall(r"[a-z_:][a-z0-9_:]*", bare)
    names = {word for word in words if "echostill_" in word or word.startswith("ray_")}
    assert names
    assert names <= known.keys()
    labels = LABELS_OF_ALL.union(*(known[name] or () for name in names))
    used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
    for listed in re.findall(r"by \(([\w, ]+)\)", expression):
        used |= set(listed.split(", "))
    assert used <= labels


def test_every_metric_of_the_workers_is_shown():
    text = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    shown = {metric.exported for metric in (*SHARDS, *TRAINING)} - {"ray_echostill_rows_per_second"}
    assert {name for name in shown if name not in text} == set()


def test_the_legends_use_labels_that_the_query_keeps():
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
            kept = re.match(r".*?by \(([\w, ]+)\)", target["expr"], re.DOTALL)
            if kept:
                assert named <= set(kept[1].split(", ")), panel["title"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_panels_of_what_should_not_happen_are_not_empty_where_it_did_not(tmp_path):
    """A counter of Ray appears with its first value: without one a panel would have no data."""
    (quarantined,) = (p["targets"][0]["expr"] for p in panels() if p["title"] == "Quarantined")
    (ended,) = (p["targets"][0]["expr"] for p in panels() if p["title"].startswith("Runs ended"))

    def case(series, expression, samples):
        expected = [{"labels": labels, "value": value} for labels, value in samples]
        query = expression.replace("$__rate_interval", "5m")
        check = {"expr": query, "eval_time": "15m", "exp_samples": expected}
        given = [{"series": name, "values": values} for name, values in series.items()]
        return {"interval": "1m", "input_series": given, "promql_expr_test": [check]}

    def rows(kind, stage):
        return f'ray_echostill_{kind}_total{{stage="{stage}", device="cpu"}}'

    stages = {rows("rows", "ingest"): "0+90x20", rows("quarantined", "ingest"): "0+10x20",
              rows("rows", "score"): "0+5x20", rows("quarantined", "other"): "0+5x20"}  # fmt: skip
    shares = [('{stage="ingest"}', 0.1), ('{stage="score"}', 0), ('{stage="other"}', 1)]
    counter = "ray_echostill_training_non_finite_total"
    tests = [
        case(stages, quarantined, shares),
        case({}, ended, [("{}", 0)]),
        case({f'{counter}{{run="distilled"}}': "1x30"}, ended, [('{run="distilled"}', 1)]),
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
    done = subprocess.run(
        ["promtool", "test", "rules", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_do_not_overlap():
    seen = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {
            (column, row)
            for column in range(at["x"], at["x"] + at["w"])
            for row in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & seen
        seen |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_alerts_say_what_and_what_to_do():
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) >= 5
    for alert in alerts:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"].keys() == {"summary", "action"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_promtool_takes_the_rules_and_their_tests():
    for command in (
        ["check", "rules", "rules.yaml"],
        ["check", "config", "--syntax-only", "prometheus.yaml"],
        ["test", "rules", "rules_test.yaml"],
    ):
        done = subprocess.run(
            ["promtool", *command], cwd=MONITORING, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
