"""Hosts with addresses of their own on this machine, for benchmarks of several nodes.

Each host is a network namespace on one bridge. A node of Ray has a temporary folder and a /dev/shm
of its own, as a machine has, and dies whole: with every process of its namespace. All of it lives
in namespaces of this benchmark (:func:`inside`), so nothing is left when it ends, however it ends.

Needs Linux, root, `iproute2` and `util-linux`.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

NET = "10.77.0"
HEAD, SERVICES = "head", "services"
NUMBERS = {HEAD: 10, "first": 11, "second": 12, SERVICES: 30}
GCS, DASHBOARD, S3, S3_BEHIND, MLFLOW = 6379, 8265, 9000, 9001, 5000
BUCKET = "chaos"
START_SECONDS = 300.0  # on a machine that is busy with other things
STARTED = "Ray runtime started"  # as `ray start` says it
STORE_BYTES = 150 * 2**20  # of Ray's object store on a node
INSIDE = "ECHOSTILL_CHAOS_INSIDE"


def inside() -> None:
    """Go on in namespaces of this benchmark's own: of network, mounts and processes."""
    if os.environ.get(INSIDE):
        return
    options = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", *options, sys.executable, *sys.argv])


def run(*command: str) -> str:
    """Run a short command and return what it printed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Hosts:
    """The hosts, the servers beside the cluster, and the nodes of Ray."""

    def __init__(self, folder: Path) -> None:
        """Make the hosts.

        Args:
            folder: For logs, the token and the nodes' temporary folders; its path must be short,
                since Ray's sockets lie below it.
        """
        self.folder = folder
        self.temporary = folder / "t"
        self.temporary.mkdir()
        (folder / "token").write_text(secrets.token_hex(32))
        (folder / "delay").write_text("0")
        self.always: dict[str, str] = {}  # of every environment, in place of what is usual
        self._delays = folder / "delay"
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._sizes: dict[str, tuple[str, ...]] = {}
        self._said: dict[str, int] = {}  # characters of the log, before the node was started
        run("mount", "-t", "tmpfs", "tmpfs", _made("/run/netns"))
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "bridge0", "type", "bridge")
        run("ip", "addr", "add", f"{NET}.1/24", "dev", "bridge0")
        run("ip", "link", "set", "bridge0", "up")
        for name, number in NUMBERS.items():
            run("ip", "netns", "add", name)
            run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", name, "master", "bridge0", "up")
            there = ("ip", "-n", name)
            run(*there, "link", "set", "lo", "up")
            run(*there, "addr", "add", f"{NET}.{number}/24", "dev", "eth0")
            run(*there, "link", "set", "eth0", "up")
            run(*there, "route", "add", "default", "via", f"{NET}.1")

    @property
    def tracking(self) -> str:
        """Address of the MLflow server."""
        return f"http://{NET}.{NUMBERS[SERVICES]}:{MLFLOW}"

    @property
    def dashboard(self) -> str:
        """Address of the head's dashboard."""
        return f"http://{NET}.{NUMBERS[HEAD]}:{DASHBOARD}"

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of every process of the cluster, and of who submits to it."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(self.temporary),
            "TMPDIR": str(self.temporary),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "AWS_ENDPOINT_URL": f"http://{NET}.{NUMBERS[SERVICES]}:{S3}",
            "AWS_ACCESS_KEY_ID": "chaos",
            "AWS_SECRET_ACCESS_KEY": "chaos",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            **more,
            **self.always,
        }

    def start(
        self, host: str, command: Sequence[str], log: str, environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a process on a host; what it says goes to a log."""
        with (self.folder / f"{log}.log").open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", host, *command],
                stdout=file,
                stderr=file,
                env=environment,
                cwd=self.folder,
            )

    def start_services(self) -> None:
        """Start an object store, a proxy before it that can be slow, and an MLflow server."""
        environment = self.environment()
        behind = ["-H", "127.0.0.1", "-p", str(S3_BEHIND)]
        self.start(SERVICES, [sys.executable, "-m", "moto.server", *behind], "s3", environment)
        proxy = [sys.executable, __file__, str(self._delays)]
        self.start(SERVICES, proxy, "proxy", environment)
        files = self.folder / "mlflow"
        files.mkdir()
        server = [sys.executable, "-m", "mlflow", "server", "--host", "0.0.0.0", "--workers", "1"]
        server += ["--port", str(MLFLOW), "--backend-store-uri", f"sqlite:///{files}/mlflow.db"]
        server += ["--artifacts-destination", str(files), "--allowed-hosts", "*"]
        quiet = {**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.start(SERVICES, server, "mlflow", quiet)
        answered(f"{environment['AWS_ENDPOINT_URL']}/{BUCKET}", "PUT")
        answered(f"{self.tracking}/health")

    def delay(self, seconds: float) -> None:
        """Let the object store answer later, by so many seconds for each packet of an answer."""
        self._delays.write_text(str(seconds))

    def start_node(self, host: str, *size: str, environment: dict[str, str] | None = None) -> None:
        """Start the node of a host; one that ran before gets its former size.

        Args:
            host: Where.
            size: Options of `ray start`, such as ``--num-cpus=2``.
            environment: Besides :meth:`environment`.
        """
        size = self._sizes.setdefault(host, size)
        address = f"{NET}.{NUMBERS[host]}"
        if host == HEAD:
            role = ["--head", f"--port={GCS}", "--dashboard-host=0.0.0.0"]
            role += [f"--temp-dir={self.temporary}"]
        else:
            role = [f"--address={NET}.{NUMBERS[HEAD]}:{GCS}"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *role, *size]
        ray += [f"--node-ip-address={address}", f"--object-store-memory={STORE_BYTES}"]
        mounts = f"mount -t tmpfs tmpfs {self.temporary} && mount -t tmpfs tmpfs /dev/shm"
        command = ["unshare", "--mount", "bash", "-c", f'{mounts} && exec "$@"', "-", *ray]
        log = self.folder / f"{host}.log"
        self._said[host] = len(log.read_text()) if log.exists() else 0
        self._nodes[host] = self.start(host, command, host, self.environment(**(environment or {})))

    def node_ended(self, host: str) -> bool:
        """Whether `ray start` has ended on a host, as it does where a node was taken for dead."""
        return self._nodes[host].poll() is not None

    def processes(self, host: str) -> dict[int, str]:
        """Return the titles of a host's processes by their ids."""
        found = {}
        for number in run("ip", "netns", "pids", host).split():
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{number}/cmdline").read_bytes()
                found[int(number)] = title.replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def kill(self, host: str) -> None:
        """End a host at once, with all its processes."""
        while numbers := self.processes(host):
            for number in numbers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.1)
            if all(_state(number) in "ZX" for number in numbers):
                break
        if host in self._nodes:
            self._nodes[host].wait()

    def part(self, host: str, apart: bool) -> None:
        """Cut a host off the network, or connect it again."""
        run("ip", "link", "set", host, "down" if apart else "up")

    def on_head(self, command: Sequence[str], log: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a command on the head, beside its node."""
        address = f"{NET}.{NUMBERS[HEAD]}:{GCS}"
        node = ["nsenter", "--target", str(self._nodes[HEAD].pid), "--mount", "--net"]
        with (self.folder / f"{log}.log").open("ab") as file:
            return subprocess.Popen(
                [*node, f"--wd={self.folder}", *command],
                stdout=file,
                stderr=file,
                env=self.environment(RAY_ADDRESS=address, **more),
            )

    def here(self, command: Sequence[str], log: str) -> subprocess.Popen[bytes]:
        """Start a command on a machine beside the cluster."""
        with (self.folder / f"{log}.log").open("ab") as file:
            return subprocess.Popen(
                command, stdout=file, stderr=file, env=self.environment(), cwd=self.folder
            )

    def await_node(self, host: str) -> None:
        """Wait until the node that was started last on a host belongs to the cluster."""
        log = self.folder / f"{host}.log"
        until = time.monotonic() + START_SECONDS
        while STARTED not in log.read_text()[self._said[host] :]:
            if self.node_ended(host) and time.monotonic() < until:
                self.start_node(host)  # as its supervisor would
            if time.monotonic() > until:
                raise SystemExit(f"FAILED: the node on '{host}' did not start; see {log}")
            time.sleep(0.1)


def _made(folder: str) -> str:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder


def _state(number: int) -> str:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "X"


def answered(url: str, method: str = "GET") -> None:
    """Wait until a server answers well."""
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            with urlopen(Request(url, method=method), timeout=5):
                return
        except (URLError, OSError) as error:
            if time.monotonic() > until:
                raise SystemExit(f"FAILED: {url} does not answer: {error}") from None
            time.sleep(0.2)


async def slow_proxy(delays: Path) -> None:
    """Pass connections on to the object store, each packet of an answer as late as a file says."""

    async def passing(reader: Any, writer: Any, late: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                if late:
                    await asyncio.sleep(float(delays.read_text() or 0))
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()

    async def connect(reader: Any, writer: Any) -> None:
        try:
            behind, to = await asyncio.open_connection("127.0.0.1", S3_BEHIND)
        except OSError:
            writer.close()
            return
        await asyncio.gather(passing(reader, to, False), passing(behind, writer, True))

    server = await asyncio.start_server(connect, "0.0.0.0", S3)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(slow_proxy(Path(sys.argv[1])))
