"""The image, the compose file, the scripts and the cluster launcher: what needs no container."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from echostill.jobs.pipeline import resolve_stages

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"
DOCKERFILE = (INFRA / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
LAUNCHERS = sorted((INFRA / "cluster-launcher").glob("*.yaml"))
# Members of a service in the Compose specification, as far as ours use them.
MEMBERS = {
    "image", "build", "restart", "init", "cap_drop", "security_opt", "environment", "secrets",
    "shm_size", "hostname", "command", "entrypoint", "ports", "depends_on", "deploy", "volumes",
    "healthcheck", "profiles", "read_only", "tmpfs",
}  # fmt: skip
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


def resolved(text):
    """A value of the compose file where none of its variables is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")


def steps():
    """The instructions of the Dockerfile, by stage."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    stages, name = {"": []}, ""
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            name = rest.rpartition(" AS ")[2]
            stages[name] = []
        stages[name].append((word, rest))
    return stages


def test_the_image_has_no_root_no_telemetry_and_a_health_check():
    runtime = steps()["runtime"]
    words = [word for word, _ in runtime]
    users = [rest for word, rest in runtime if word == "USER"]
    assert users == ["1000:1000"]  # a number: Kubernetes cannot tell that a name is not root
    assert words.index("USER") > max(n for n, word in enumerate(words) if word in ("RUN", "COPY"))
    assert words.count("HEALTHCHECK") == 1
    (environment,) = (rest for word, rest in runtime if word == "ENV")
    for setting in ("RAY_USAGE_STATS_ENABLED=0", "RAY_AUTH_MODE=token", "DO_NOT_TRACK=true"):
        assert setting in environment
    run = " ".join(rest for word, rest in runtime if word == "RUN")
    assert "pip uninstall --yes pip setuptools wheel" in run
    # KubeRay's probes call wget: without it no pod would become ready.
    assert re.search(r"install --yes --no-install-recommends wget\b", run)


def test_the_image_installs_pinned_releases():
    stages = steps()
    assert list(stages) == ["", "builder", "runtime"]
    assert ("ARG", "BASE=docker.io/library/python:3.11-slim") in stages[""]
    assert not re.search(r":latest\b", DOCKERFILE)
    installs = [
        part
        for _, rest in stages["builder"]
        for part in rest.split(";")
        if re.search(r"pip .*\binstall\b", part)
    ]
    assert len(installs) == 4
    for part in installs:
        pinned = "--constraint pins.txt" in part or "--requirement torch.txt" in part
        assert pinned or "--no-deps ./source" in part or re.search(r"install [\w-]+==[\d.]+", part)
    copied = [rest for word, rest in stages["runtime"] if word == "COPY"]
    assert [rest.split()[-1] for rest in copied] == [
        "/opt/echostill", "/usr/share/sbom", "/usr/local/bin/echostill-health"
    ]  # fmt: skip


def test_what_only_the_image_installs_is_pinned_too():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").open()}
    for requirement in project["optional-dependencies"]["cluster"]:
        assert re.split(r"[\[><=]", requirement)[0] in pins


def test_the_image_gets_every_file_that_the_dockerfile_copies():
    named = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.split("/")[0] for path in project["tool"]["setuptools"]["package-dir"].values()}
    assert folders <= named
    assert {"pyproject.toml", "constraints.txt", "infra/healthcheck.py"} <= named
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    ("command", "address"),
    [
        (["/opt/echostill/bin/python", "/opt/echostill/bin/ray", "start", "--head"], "52365"),
        (["/sbin/docker-init", "--", "ray", "start", "--address=head:6379"], "52365"),
        (["python", "/opt/echostill/bin/mlflow", "server", "--port=5000"], ":5000/health"),
        (["echostill", "serve", "/store"], ":8420/healthz"),
        (["echostill", "score"], None),
        (["ray", "health-check"], None),
    ],
)
def test_the_health_check_asks_the_server_that_was_started(command, address):
    spec = importlib.util.spec_from_file_location("healthcheck", INFRA / "healthcheck.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.address_of(command)
    assert (found is None) == (address is None)
    assert address is None or address in found


def test_the_compose_file_is_one():
    assert COMPOSE.keys() == {"name", "x-node", "x-ray", "x-s3", "services", "secrets", "volumes"}
    for name, service in SERVICES.items():
        assert service.keys() <= MEMBERS, name
        for other, condition in service.get("depends_on", {}).items():
            assert condition["condition"] in CONDITIONS
            assert other in SERVICES
            if condition["condition"] == "service_healthy":
                ours = "echostill:" in resolved(SERVICES[other]["image"])
                assert ours or "healthcheck" in SERVICES[other]
        for secret in service.get("secrets", ()):
            assert (secret if isinstance(secret, str) else secret["source"]) in COMPOSE["secrets"]
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            known = source in COMPOSE["volumes"] or (INFRA / source).is_file()
            assert known, f"{name}: {volume}"


def test_images_of_others_are_pinned_and_no_container_gets_more_rights():
    for name, service in SERVICES.items():
        image = resolved(service["image"])
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)?$", image), image
        assert "privileged" not in service
        assert service.get("network_mode") != "host"
        assert service["security_opt"] == ["no-new-privileges:true"]
        if name != "postgres":  # its entry point changes the owner of its folder, then its user
            assert service["cap_drop"] == ["ALL"]
        ours = "echostill:" in resolved(service["image"])
        if ours and name not in ("head", "worker"):  # Ray's nodes write more than memory holds
            assert service["read_only"]
            assert service["tmpfs"] == ["/tmp"]
            assert service["environment"]["HOME"] == "/tmp"


def texts(value):
    """Every string of a part of the compose file, as it is where no variable is set."""
    if isinstance(value, dict):
        return [text for one in value.values() for text in texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [resolved(value)] if isinstance(value, str) else []


def listens(name):
    """The ports that a service of the compose file is told to listen on, or listens on unasked."""
    ports = re.findall(r"[-.]port=(\d+)", " ".join(texts(SERVICES[name]["command"])))
    return set(ports)


def test_what_a_container_asks_for_is_there():
    asked = set()
    for service in SERVICES.values():
        for member in ("command", "environment"):
            for text in texts(service.get(member, {})):
                asked |= set(re.findall(r"(?:http://|address=|hosts=)([a-z]\w*):(\d+)", text))
    prometheus = yaml.safe_load((INFRA / "monitoring" / "prometheus.yaml").read_text())
    for job in prometheus["scrape_configs"]:
        for found in job.get("dns_sd_configs", ()):
            asked |= {(name, str(found["port"])) for name in found["names"]}
        for found in job.get("static_configs", ()):
            asked |= {tuple(target.split(":")) for target in found["targets"]}
    assert {name for name, _ in asked} == {"head", "worker", "mlflow", "s3", "service"}
    for name, port in asked:
        assert port in listens(name), f"{name}:{port}"
    for name, service in SERVICES.items():
        inside = {resolved(port).rpartition(":")[2] for port in service.get("ports", ())}
        assert not inside or "command" not in service or inside <= listens(name)
    assert "--allowed-host=service" in " ".join(SERVICES["service"]["command"])


def test_every_secret_is_given_to_who_reads_it():
    given = {
        name: {one if isinstance(one, str) else one["target"] for one in service["secrets"]}
        for name, service in SERVICES.items()
        if "secrets" in service
    }
    read = {
        name: set(re.findall(r"/run/secrets/([\w.]+)", " ".join(texts(service))))
        for name, service in SERVICES.items()
    }
    prometheus = (INFRA / "monitoring" / "prometheus.yaml").read_text()
    read["prometheus"] = set(re.findall(r"/run/secrets/(\w+)", prometheus))
    assert {name: found for name, found in read.items() if found} == given


def test_grafana_finds_its_dashboard_and_prometheus():
    volumes = [*SERVICES["grafana"]["volumes"], *SERVICES["prometheus"]["volumes"]]
    mounted = dict(volume.split(":")[:2] for volume in volumes)
    monitoring = INFRA / "monitoring"
    (provider,) = yaml.safe_load((monitoring / "dashboards.yaml").read_text())["providers"]
    folder, _, _ = mounted["./monitoring/dashboard.json"].rpartition("/")
    assert provider["options"]["path"] == folder
    (source,) = yaml.safe_load((monitoring / "datasources.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    panels = json.loads((monitoring / "dashboard.json").read_text())["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    (rules,) = yaml.safe_load((monitoring / "prometheus.yaml").read_text())["rule_files"]
    main = mounted["./monitoring/prometheus.yaml"]
    assert mounted["./monitoring/rules.yaml"] == f"{main.rpartition('/')[0]}/{rules}"


def test_ports_are_published_on_loopback_alone():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", resolved(port)), port


def test_secrets_are_files_and_never_variables(tmp_path):
    done = subprocess.run(
        [INFRA / "secrets.sh", tmp_path / "made"], capture_output=True, text=True, check=True
    )
    folder = Path(done.stdout.strip())
    made = {path.name: path.read_text() for path in folder.iterdir()}
    wanted = {resolved(secret["file"]).rpartition("/")[2] for secret in COMPOSE["secrets"].values()}
    assert made.keys() == wanted
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    key = json.loads(made["s3.json"])["identities"][0]["credentials"][0]["secretKey"]
    assert key in made["s3_credentials"]
    assert len({made["ray_token"], made["postgres_password"], key}) == 3
    assert all(re.fullmatch(r"[0-9a-f]{64}", made[n]) for n in ("ray_token", "postgres_password"))
    subprocess.run([INFRA / "secrets.sh", folder], capture_output=True, check=True)
    assert {path.name: path.read_text() for path in folder.iterdir()} == made
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"TOKEN|PASSWORD|SECRET|CREDENTIALS|KEY", variable):
                assert str(value).startswith("/run/secrets/"), f"{name}: {variable}"
    for name in ("head", "worker"):
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_the_cluster_launcher_takes_it(path):
    """Ray's own schema, without importing Ray; what else `ray up` checks is checked below."""
    schema = importlib.metadata.distribution("ray").locate_file("ray/autoscaler/ray-schema.json")
    cluster = yaml.safe_load(path.read_text())
    jsonschema.validate(cluster, json.loads(Path(str(schema)).read_text()))
    assert cluster["provider"]["type"] == {"on-premise": "local"}.get(path.stem, path.stem)
    types = cluster.get("available_node_types", {})
    if types:
        assert cluster["head_node_type"] in types
        assert types["head"]["resources"] == {"CPU": 0}
        workers = {name: found for name, found in types.items() if name != "head"}
        assert workers.keys() == {"decode", "gpu"}
        assert all(found["min_workers"] == 0 for found in workers.values())
        assert cluster["max_workers"] == sum(found["max_workers"] for found in workers.values())
        assert workers["gpu"]["resources"]["GPU"] == 1
    for kind in ("head", "worker"):
        (start,) = (line for line in cluster[f"{kind}_start_ray_commands"] if "ray start" in line)
        assert "RAY_AUTH_MODE=token" in start
        assert "RAY_USAGE_STATS_ENABLED=0" in start
        assert "--metrics-export-port=8090" in start
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_a_wrong_launcher_file_is_found():
    schema = importlib.metadata.distribution("ray").locate_file("ray/autoscaler/ray-schema.json")
    cluster = {**yaml.safe_load(LAUNCHERS[0].read_text()), "max_worker": 3}
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(cluster, json.loads(Path(str(schema)).read_text()))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("path", sorted(INFRA.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound(path):
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_the_dockerfile_is_sound():
    done = subprocess.run(
        [HADOLINT, INFRA / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_trial_is_of_the_quickstart_as_it_is():
    text = (INFRA / "try.sh").read_text()
    config = ROOT / "examples" / "quickstart" / "config.yaml"
    (fewer,) = re.findall(r"set -- (\S.*)", text)
    resolve_stages(str(config), shlex.split(fewer), from_scratch=False)
    wanted = yaml.safe_load(config.read_text())
    runs = {"proxy"} | {
        f"{student['name']}-{seed}"
        for student in wanted["distill"]["students"]
        for seed in wanted["distill"]["seeds"]
    }
    (asked,) = re.findall(r"assert (\{.*\}) <= names", text)
    assert ast.literal_eval(asked) == runs
    programs = re.findall(r"python - [^\n]*<< (?:'END'|END)\n(.*?)\nEND\n", text, re.DOTALL)
    assert len(programs) == 4
    for program in programs:
        ast.parse(program)


def test_the_trial_refuses_what_it_does_not_know():
    done = subprocess.run([INFRA / "try.sh", "--fast"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown option --fast" in done.stderr
