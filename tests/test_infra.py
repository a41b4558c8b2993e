"""The manifests of infra/kubernetes: what kustomize makes of them fits the schemas.

Strictly: a member that a schema does not know would be dropped by the API server without a word.
Schemas of KubeRay's kinds are in kuberay.json.gz, those of Kubernetes in kubernetes-validate.
"""

import copy
import gzip
import json
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
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert rights["allowPrivilegeEscalation"] is False
            assert container["resources"]["limits"]["memory"]
            assert ":" in container["image"]
            mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
            assert mounted <= volumes


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_referred_to_is_there(overlay):
    made = render(KUBERNETES / "overlays" / overlay)
    claims = {one["metadata"]["name"] for one in made if one["kind"] == "PersistentVolumeClaim"}
    maps = {one["metadata"]["name"] for one in made if one["kind"] == "ConfigMap"}
    for manifest in made:
        for pod in pods(manifest):
            for volume in pod.get("volumes", ()):
                assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims}
                assert volume.get("configMap", {}).get("name") in {None, *maps}


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
