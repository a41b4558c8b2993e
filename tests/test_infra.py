"""The manifests of infra/kubernetes: what kustomize makes of them fits the schemas.

Strictly: a member that a schema does not know would be dropped by the API server without a word.
Schemas of KubeRay's kinds are in kuberay.json.gz, those of Kubernetes in kubernetes-validate.
"""

import copy
import gzip
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonpatch
import jsonschema
import kubernetes_validate
import pytest
import yaml

from echostill.jobs.stages import find_stage
from echostill.platform.stages import STAGES

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "infra" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
JOBS = sorted((KUBERNETES / "jobs").glob("*.yaml"))
SCHEMAS = json.loads(gzip.decompress((ROOT / "tests" / "kuberay.json.gz").read_bytes()))["schemas"]
RELEASE = "1.33"  # of Kubernetes


def documents(path):
    return [found for found in yaml.safe_load_all(path.read_text()) if found is not None]


def render(folder):
    """What `kubectl kustomize` makes of a folder, for the few features that ours use."""
    plan = documents(folder / "kustomization.yaml")[0]
    known = {"apiVersion", "kind", "namespace", "resources", "patches", "configMapGenerator",
             "generatorOptions"}  # fmt: skip
    assert plan.keys() <= known
    found = []
    for name in plan["resources"]:
        path = (folder / name).resolve()
        found += render(path) if path.is_dir() else documents(path)
    for made in plan.get("configMapGenerator", ()):
        data = {name: (folder / name).read_text() for name in made["files"]}
        metadata = {"name": made["name"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    for patch in plan.get("patches", ()):
        target = patch["target"]
        chosen = [
            one for one in found
            if (one["kind"], one["metadata"]["name"]) == (target["kind"], target["name"])
        ]  # fmt: skip
        assert len(chosen) == 1
        changed = jsonpatch.apply_patch(chosen[0], yaml.safe_load(patch["patch"]))
        found[found.index(chosen[0])] = changed
    if "namespace" in plan:
        for one in found:
            if one["kind"] != "Namespace":
                one["metadata"]["namespace"] = plan["namespace"]
    return copy.deepcopy(found)


def strict(schema):
    """A schema that refuses members it does not name."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def check(manifest):
    kind = manifest["kind"]
    if kind not in SCHEMAS:
        kubernetes_validate.validate(manifest, RELEASE, strict=True)
        return
    assert manifest["apiVersion"] == "ray.io/v1"
    schema = strict(SCHEMAS[kind])
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft202012Validator(schema).validate(manifest)


def cluster_of(manifest):
    spec = manifest["spec"]
    return spec.get("rayClusterConfig", spec)


def pods(manifest):
    """The pod specifications of a manifest."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "RayJob":
        return [spec["submitterPodTemplate"]["spec"]]
    if manifest["kind"] in ("RayCluster", "RayService"):
        cluster = cluster_of(manifest)
        groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())]
        return [group["template"]["spec"] for group in groups]
    return [spec["template"]["spec"]] if "template" in spec else []


def containers(pod):
    return [*pod.get("initContainers", ()), *pod["containers"]]


def everything():
    for overlay in OVERLAYS:
        for manifest in render(KUBERNETES / "overlays" / overlay):
            yield f"{overlay}/{manifest['kind']}/{manifest['metadata']['name']}", manifest
    for path in [*JOBS, KUBERNETES / "service" / "rayservice.yaml"]:
        for manifest in documents(path):
            yield path.name, manifest


MANIFESTS = dict(everything())


@pytest.mark.parametrize("name", MANIFESTS)
def test_fits_its_schema(name):
    check(MANIFESTS[name])


def test_a_wrong_manifest_is_found():
    cluster = copy.deepcopy(MANIFESTS["gpu/RayCluster/echostill"])
    cluster["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        check(cluster)
    service = copy.deepcopy(MANIFESTS["gpu/Service/mlflow"])
    service["spec"]["port"] = 5000
    with pytest.raises(kubernetes_validate.ValidationError):
        check(service)


@pytest.mark.parametrize("name", MANIFESTS)
def test_nothing_runs_as_root_or_without_limits(name):
    for pod in pods(MANIFESTS[name]):
        assert pod["securityContext"]["runAsNonRoot"]
        volumes = {volume["name"] for volume in pod.get("volumes", ())} | {"data"}
        for container in containers(pod):
            rights = container["securityContext"]
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["readOnlyRootFilesystem"]
            assert container["resources"]["limits"]["memory"]
            assert ":" in container["image"]
            mounted = {mount["name"]: mount for mount in container.get("volumeMounts", ())}
            assert mounted.keys() <= volumes
            if "echostill" in container["image"] and "env" in container:  # it has programs that
                assert mounted["scratch"]["mountPath"] == "/tmp"  # write into /tmp or at home
                assert {"name": "HOME", "value": "/tmp"} in container["env"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_makes_the_same_of_an_overlay(overlay):
    done = subprocess.run(
        ["kubectl", "kustomize", KUBERNETES / "overlays" / overlay],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    theirs = list(yaml.safe_load_all(done.stdout))
    ours = render(KUBERNETES / "overlays" / overlay)

    def order(one):
        return one["apiVersion"], one["kind"], one["metadata"]["name"]

    assert sorted(ours, key=order) == sorted(theirs, key=order)


def test_the_groups_of_each_overlay():
    groups = {
        overlay: {
            group["groupName"]: group
            for group in MANIFESTS[f"{overlay}/RayCluster/echostill"]["spec"]["workerGroupSpecs"]
        }
        for overlay in OVERLAYS
    }
    assert {name: set(found) for name, found in groups.items()} == {
        "cpu": {"decode"}, "gpu": {"decode", "gpu"}, "spot": {"decode", "gpu"}
    }  # fmt: skip
    for found in groups.values():
        for group in found.values():
            assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    for name in ("decode", "gpu"):
        keys = {
            toleration["key"]
            for toleration in groups["spot"][name]["template"]["spec"]["tolerations"]
        }
        assert "cloud.google.com/gke-spot" in keys
        asked = groups["gpu"][name]["template"]["spec"]["containers"][0]["resources"]
        assert ("nvidia.com/gpu" in asked["limits"]) == (name == "gpu")
        assert asked["requests"] == asked["limits"]  # nodes are added for what is asked
    for overlay in OVERLAYS:
        cluster = MANIFESTS[f"{overlay}/RayCluster/echostill"]["spec"]
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["enableInTreeAutoscaling"]
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_each_stage_has_a_job():
    assert [path.stem for path in JOBS] == sorted([*STAGES, "run"])
    for path in JOBS:
        (job,) = documents(path)
        assert job["spec"]["entrypoint"] == f"echostill {path.stem} --config /config/config.yaml"
        # KubeRay refuses a lifetime of a job whose cluster stays.
        assert "ttlSecondsAfterFinished" not in job["spec"]


def test_the_shipped_configuration_is_valid():
    for name in STAGES.keys() - {"evaluate"}:  # which needs labelled sets of one's own
        find_stage(name).load(str(KUBERNETES / "base" / "config.yaml"), ())


def test_the_service_takes_its_arguments():
    from echostill.curation.service.on_ray import ServeArguments

    service = MANIFESTS["rayservice.yaml"]
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    arguments = ServeArguments(**application["args"])
    (pod,) = pods(service)
    mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    for path in (arguments.store, arguments.token_file, arguments.index_folder):
        assert any(path == mount or path.startswith(f"{mount}/") for mount in mounts), path


# The references between manifests. All overlays come from one base: the fullest is looked at.
TOGETHER = [one for name, one in MANIFESTS.items() if "/" not in name or name.startswith("gpu/")]
README = (ROOT / "infra" / "README.md").read_text()
RAY_PORTS = {6379, 8265, 10001, 8080, 8000}  # GCS, dashboard, client, metrics, Serve: KubeRay's own


def of_kind(*kinds):
    return [manifest for manifest in TOGETHER if manifest["kind"] in kinds]


def running():
    """Labels and ports, by name, of every pod that the manifests lead to."""
    for manifest in of_kind("RayCluster", "RayService"):
        labels = {"ray.io/is-ray-node": "yes", "ray.io/cluster": manifest["metadata"]["name"]}
        yield labels, {str(port): port for port in RAY_PORTS}
    for manifest in of_kind("RayJob"):
        yield manifest["spec"]["submitterPodTemplate"]["metadata"]["labels"], {}
    for manifest in of_kind("Deployment", "StatefulSet"):
        labels = manifest["spec"]["template"]["metadata"]["labels"]
        assert manifest["spec"]["selector"]["matchLabels"].items() <= labels.items()
        (pod,) = pods(manifest)
        ports = [port for one in pod["containers"] for port in one["ports"]]
        yield labels, {port["name"]: port["containerPort"] for port in ports}


def chosen(labels):
    """Ports, by name, of the pods that a selector chooses; None where it chooses none."""
    found = [ports for mine, ports in running() if labels.items() <= mine.items()]
    return {name: port for ports in found for name, port in ports.items()} if found else None


def test_services_choose_pods_that_listen_there():
    for service in of_kind("Service"):
        ports = chosen(service["spec"]["selector"])
        assert {ports[port["targetPort"]] for port in service["spec"]["ports"]} == {
            port["port"] for port in service["spec"]["ports"]
        }


def test_policies_choose_pods_that_listen_there():
    for policy in of_kind("NetworkPolicy"):
        ports = set(chosen(policy["spec"]["podSelector"].get("matchLabels", {})).values())
        for rule in policy["spec"].get("ingress", ()):
            assert {port["port"] for port in rule.get("ports", ())} <= ports
            for peer in rule["from"]:
                labels = peer.get("podSelector", {}).get("matchLabels", {})
                if "namespaceSelector" not in peer and chosen(labels) is None:  # a caller's pod
                    assert all(f'`{key}: "{value}"`' in README for key, value in labels.items())


def texts(value):
    """Every string of a manifest but the names of images."""
    if isinstance(value, dict):
        return [text for key, one in value.items() if key != "image" for text in texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [value] if isinstance(value, str) else []


def test_what_ray_asks_for_is_a_service_that_lets_it_in():
    services = {
        one["metadata"]["name"]: {port["port"] for port in one["spec"]["ports"]}
        for one in of_kind("Service")
    }
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind("NetworkPolicy")}
    asked = set()
    for manifest in of_kind("RayCluster", "RayService", "ConfigMap"):
        for text in texts(manifest):
            asked |= set(re.findall(r"\b([a-z][a-z-]+):(\d{4,5})\b", text))
    assert asked == {("redis", "6379"), ("mlflow", "5000")}
    for host, port in asked:
        assert int(port) in services[host]
        (rule,) = policies[host]["ingress"]
        assert rule["from"] == [{"podSelector": {"matchLabels": {"ray.io/is-ray-node": "yes"}}}]
        assert rule["ports"] == [{"port": int(port)}]
    # Nothing comes in that is not allowed. Ray may call out, to S3; the others have nobody to call.
    assert policies["default"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert "Egress" not in policies["ray"]["policyTypes"]


def secrets_of(value):
    """(name, key or None) of every secret that a manifest refers to."""
    if isinstance(value, list):
        return [found for one in value for found in secrets_of(one)]
    if not isinstance(value, dict):
        return []
    found = [found for one in value.values() for found in secrets_of(one)]
    for member, name in (("secretKeyRef", "name"), ("secretRef", "name"), ("secret", "secretName")):
        if isinstance(value.get(member), dict):
            found.append((value[member][name], value[member].get("key")))
    return found


def test_every_secret_is_made_by_the_readme_or_by_kuberay():
    creation = r"-n echostill create secret generic (\S+) (?:--from-literal=(\w+))?"
    made = {name: key or None for name, key in re.findall(creation, README)}
    (cluster,) = of_kind("RayCluster")
    made[cluster["metadata"]["name"]] = "auth_token"  # of authOptions
    used = {secret for manifest in TOGETHER for secret in secrets_of(manifest)}
    assert {name for name, _ in used} == made.keys()
    for name, key in used:
        assert key in (None, made[name]), name


def test_jobs_claims_and_namespaces_lead_to_what_is_there():
    (cluster,) = of_kind("RayCluster")
    namespaces = {one["metadata"].get("namespace") for one in TOGETHER} - {None}
    assert namespaces == {one["metadata"]["name"] for one in of_kind("Namespace")}
    for job in of_kind("RayJob"):
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    claims = {one["metadata"]["name"] for one in of_kind("PersistentVolumeClaim")}
    maps = {one["metadata"]["name"] for one in of_kind("ConfigMap")}
    for manifest in MANIFESTS.values():
        for volume in (volume for pod in pods(manifest) for volume in pod.get("volumes", ())):
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims}
            assert volume.get("configMap", {}).get("name") in {None, *maps}


def test_prometheus_is_let_in_and_knows_where_to_ask():
    pod_monitor, scrape = documents(ROOT / "infra" / "monitoring" / "podmonitor.yaml")
    service = MANIFESTS["rayservice.yaml"]
    (target,) = scrape["spec"]["staticConfigs"][0]["targets"]
    host, port = target.split(":")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert host in application["args"]["hosts"]  # the service refuses other names
    assert host.startswith(f"{service['metadata']['name']}-serve-svc.")
    assert chosen(pod_monitor["spec"]["selector"]["matchLabels"]) is not None
    assert pod_monitor["spec"]["namespaceSelector"] == {"matchNames": ["echostill"]}
    here = {"kubernetes.io/metadata.name": pod_monitor["metadata"]["namespace"]}
    peers = [{"namespaceSelector": {"matchLabels": here}}]
    (ray,) = (one for one in of_kind("NetworkPolicy") if one["metadata"]["name"] == "ray")
    (rule,) = (rule for rule in ray["spec"]["ingress"] if rule["from"] == peers)
    assert {port["port"] for port in rule["ports"]} == {8080, int(port)}


def test_releases_are_those_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    pins = dict(
        line.strip().lower().split("==")
        for line in (ROOT / "constraints.txt").open()
        if "==" in line and not line.startswith("#")
    )
    for manifest in TOGETHER:
        for one in (one for pod in pods(manifest) for one in containers(pod)):
            if one["image"].startswith("echostill:"):
                assert one["image"].removesuffix("-cu128") == f"echostill:{version}"
    for manifest in of_kind("RayCluster", "RayService"):
        assert cluster_of(manifest)["rayVersion"] == pins["ray"]


def test_shared_memory_holds_the_object_store():
    """Ray takes 30% of a pod's memory unless told, and where that does not fit, the disk."""
    for cluster in map(cluster_of, of_kind("RayCluster", "RayService")):
        for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())):
            volumes = {one["name"]: one for one in group["template"]["spec"]["volumes"]}
            (size,) = re.fullmatch(r"(\d+)Gi", volumes["shm"]["emptyDir"]["sizeLimit"]).groups()
            assert int(group["rayStartParams"]["object-store-memory"]) < int(size) * 2**30


def test_a_worker_that_ends_says_so_and_has_time_for_it():
    for group in MANIFESTS["spot/RayCluster/echostill"]["spec"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        assert "--reason=DRAIN_NODE_REASON_PREEMPTION" in command  # what Ray Train looks for
        deadline, wait = (int(n) for n in re.findall(r"(?:seconds=|sleep )(\d+)", command))
        assert wait <= deadline <= pod["terminationGracePeriodSeconds"] - 15  # of `ray stop`
