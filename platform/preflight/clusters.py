"""Whether a Ray cluster answers at an address, and takes this shell's token.

Ray itself retries for minutes, and does not say which of the two is missing.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.preflight.answers import SECONDS, SILENT, NoAnswerError, ask
from echostill.platform.processes import all_processes, submission

RAYLET = "raylet"  # the process that every machine of a cluster has
HEAD_PORT = 6379
# A call that every head answers, and one of its server for ray:// clients, with its argument (a
# ping). Whoever has no token is refused before either is looked at.
HEAD = "/ray.rpc.NodeInfoGcsService/CheckAlive", b""
CLIENT_SERVER = "/ray.rpc.RayletDriver/ClusterInfo", b"\x08\x06"
RECENT_SECONDS = 60.0  # a cluster that answered is not asked again: a command checks each stage
HOW = (
    "put it in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH (on the head node: "
    "~/.ray/auth_token)"
)

_answered: dict[tuple[str, tuple[str, str] | None], float] = {}  # when, by address and token


def check_ray(address: str | None = None) -> None:
    """Check that the Ray cluster that a stage would use answers; a local one needs no check.

    Args:
        address: The address from the configuration; None takes RAY_ADDRESS.

    Raises:
        UsageError: The address is malformed, nothing answers there, or the token is missing or
            wrong.
    """
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    # A job, or a worker, runs on the cluster that it asks for.
    if target == "local" or submission() is not None or _connected():
        return
    where = f"'{target}' ({'address' if address else 'RAY_ADDRESS'})"
    if target == "auto":
        if any(process.name == RAYLET for process in all_processes()):
            return
        raise _unreachable(where, "no Ray runs on this machine, where it would be found")
    location = target.removeprefix("ray://")
    host, _, port = location.rpartition(":")
    if "://" in location or not host or not port.isdecimal():
        dashboard = target.startswith(("http://", "https://"))
        hint = (
            " An http:// address is the dashboard's, for `echostill submit`." if dashboard else ""
        )
        raise _unreachable(where, "it is no address of a head node", hint)
    asked = target, find_token()
    if time.monotonic() - _answered.get(asked, -RECENT_SECONDS) < RECENT_SECONDS:
        return
    _call(location, where, *(CLIENT_SERVER if target.startswith("ray://") else HEAD))
    _answered[asked] = time.monotonic()


def check_dashboard(address: str) -> None:
    """Check that a Ray dashboard answers at an address, and takes the token.

    Args:
        address: As http://HOST:8265; other kinds than http and https are left to Ray.

    Raises:
        UsageError: Nothing answers there, or the token is missing or wrong.
        EchostillError: What answers is not a Ray dashboard.
    """
    url = address if "://" in address else f"http://{address}"
    if not url.startswith(("http://", "https://")):
        return
    token = find_token()
    headers = {"Authorization": f"Bearer {token[1]}"} if token else {}
    try:
        answer = ask(f"{url.rstrip('/')}/api/version", headers=headers)
    except NoAnswerError as error:
        raise UsageError(
            f"no Ray dashboard answers at {address}: {error}. Start a cluster (`ray start "
            "--head`), or correct --address (RAY_API_SERVER_ADDRESS)."
        ) from None
    if answer.status in (401, 403):
        raise _wants_token(address, token)
    if answer.status >= 400 or (answer.status == 200 and b"ray_version" not in answer.body):
        said = f"HTTP status {answer.status}" if answer.status >= 400 else "another page"
        raise UsageError(
            f"what answers at {address} is no Ray dashboard ({said}): expected the address that "
            "`ray start --head` printed, by default http://127.0.0.1:8265. Correct --address."
        )


def find_token() -> tuple[str, str] | None:
    """Find the token that Ray would send: where it is from, and the token itself.

    None where token authentication is off in this shell, or there is no token.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return "RAY_AUTH_TOKEN", token
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    try:
        token = Path(file).read_text().strip()
    except (OSError, UnicodeError):
        return None
    return (file, token) if token else None


def _connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _call(location: str, where: str, method: str, argument: bytes) -> None:
    import grpc

    token = find_token()
    options = [("grpc.enable_http_proxy", 0)]  # as Ray's own channels
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        channel = grpc.secure_channel(location, _credentials(), options)
    else:
        channel = grpc.insecure_channel(location, options)
    metadata = [("authorization", f"Bearer {token[1]}")] if token else []
    with channel:
        try:
            channel.unary_unary(method)(argument, timeout=SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code == grpc.StatusCode.UNAUTHENTICATED:
                raise _wants_token(where, token) from None
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise _unreachable(where, SILENT) from None
            if code == grpc.StatusCode.UNAVAILABLE:
                refused = "refused" in details
                said = "nothing listens there" if refused else "what answers there is not Ray"
                if "resolv" in details:
                    said = "there is no host of that name"
                raise _unreachable(where, said) from None
            # Another answer is one of Ray's as well, of another release maybe.


def _credentials() -> Any:
    """TLS as Ray's own variables set it."""
    import grpc

    def read(variable: str) -> bytes | None:
        path = os.environ.get(variable)
        return Path(path).read_bytes() if path else None

    return grpc.ssl_channel_credentials(
        read("RAY_TLS_CA_CERT"), read("RAY_TLS_SERVER_KEY"), read("RAY_TLS_SERVER_CERT")
    )


def _unreachable(where: str, said: str, hint: str = "") -> UsageError:
    return UsageError(
        f"cannot reach Ray at {where}: {said}.{hint} Expected the head node of a running cluster, "
        f"HOST:{HEAD_PORT}: start one (`ray start --head`), correct the address, or leave it out "
        "for a local Ray."
    )


def _wants_token(where: str, token: tuple[str, str] | None) -> EchostillError:
    if token is not None:
        return UsageError(
            f"the cluster at {where} refuses the token from {token[0]}: expected the cluster's "
            f"own. Correct it: {HOW}."
        )
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        return UsageError(f"the cluster at {where} wants its token, and there is none: {HOW}.")
    return UsageError(
        f"the cluster at {where} wants its token: set RAY_AUTH_MODE=token, and {HOW}."
    )
