"""`echostill serve`: the application on uvicorn, by default on the loopback only."""

import contextlib
import logging
import socket
import sys
from pathlib import Path

import uvicorn

from echostill.curation.ingestion.settings import read_key_file
from echostill.curation.service.data.derived import ProgressLine, derived_folder, prepare
from echostill.curation.service.http.app import Options, create_app
from echostill.curation.service.http.security import LOOPBACK, SecurityMiddleware
from echostill.curation.service.http.token import find_token, token_path
from echostill.curation.service.protocol import BoundedHttpProtocol
from echostill.platform.errors import UsageError
from echostill.platform.preflight.clusters import check_ray
from echostill.platform.tables.store import Store

PORT = 8420
GRACE = 10  # seconds for running requests when the service is stopped
EVERYWHERE = ("0.0.0.0", "::", "")


def serve(
    root: str,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token_file: str | None = None,
    allowed_hosts: tuple[str, ...] = (),
    index_folder: str | None = None,
    address: str | None = None,
    ssl_keyfile: str | None = None,
    ssl_certfile: str | None = None,
    key_file: str | None = None,
    access_log: bool = True,
) -> None:
    """Serve a store until interrupted.

    Args:
        root: the store.
        host: address to listen on.
        port: of TCP; 0 takes a free one.
        token_file: of the token, created if missing; default ``<store>.token``.
        allowed_hosts: further names under which the service may be reached.
        index_folder: of derived files; default in the user's cache.
        address: of a Ray cluster that picks.
        ssl_keyfile, ssl_certfile: for TLS; both or none.
        key_file: of the pool, for withdrawals; default the variable ECHOSTILL_KEY.
        access_log: whether to log requests.

    Raises:
        UsageError: No such store, an unsafe token file, half of TLS, files that are missing, or no
            such cluster.
    """
    for name in (ssl_keyfile, ssl_certfile):
        if name is not None and not Path(name).is_file():
            raise UsageError(f"no file '{name}'.")
    if (ssl_keyfile is None) != (ssl_certfile is None):
        raise UsageError("TLS needs both --ssl-keyfile and --ssl-certfile.")
    if host in EVERYWHERE and not allowed_hosts:
        raise UsageError(
            f"--host {host or '(all)'} listens on all interfaces: give the name of this machine "
            "with --allowed-host."
        )
    if address is not None:
        check_ray(address)
    store = Store(root)
    store.open_pool()
    path = token_path(store, token_file)
    token, made = find_token(path)
    hosts = (*allowed_hosts, *(() if host in EVERYWHERE else (host,)))
    key = read_key_file(key_file)
    options = Options(store.root, token, hosts, index_folder, address, log=access_log, key=key)
    app = create_app(options)
    _set_up_log()
    scheme = "https" if ssl_certfile else "http"
    if ssl_certfile is None and host not in LOOPBACK:
        print(
            "warning: without TLS the token and the images are sent unencrypted.", file=sys.stderr
        )
    config = configuration(app, host, port, ssl_keyfile, ssl_certfile)
    server = _Server(config, scheme, token if made else None, path)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise UsageError(f"cannot listen on {host}:{port}: is another service running there?")


def configuration(
    app: SecurityMiddleware,
    host: str,
    port: int,
    ssl_keyfile: str | None = None,
    ssl_certfile: str | None = None,
) -> uvicorn.Config:
    """Settings of uvicorn: no header names it, and it trusts no proxy."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        http=BoundedHttpProtocol,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE,
        limit_concurrency=512,
        ssl_keyfile=ssl_keyfile,
        ssl_certfile=ssl_certfile,
    )


class _Server(uvicorn.Server):
    """uvicorn that prints its URL, and the token if it is new."""

    def __init__(self, config: uvicorn.Config, scheme: str, token: str | None, path: Path) -> None:
        super().__init__(config)
        self._scheme, self._token, self._path = scheme, token, path

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        port = self.servers[0].sockets[0].getsockname()[1]
        host = "127.0.0.1" if self.config.host in EVERYWHERE else self.config.host
        name = f"[{host}]" if ":" in host else host
        where = f"{self._scheme}://{name}:{port}/"
        if self._token is not None:
            print(f"token     {self._token}  (shown once; stored in {self._path})", flush=True)
            print(f"explorer  {where}#token={self._token}", flush=True)
        else:
            print(f"token     in {self._path}", flush=True)
        print(f"serving   {where}", flush=True)


def _set_up_log() -> None:
    """Requests as lines of JSON, the rest as plain lines, all to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name, level in (("echostill.access", logging.INFO), ("echostill.service", logging.INFO)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    errors = logging.StreamHandler(sys.stderr)
    logging.getLogger("uvicorn.error").handlers = [errors]
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def build_index(root: str, folder: str | None = None) -> str:
    """Build everything that the service derives from a store, without serving.

    Returns:
        A sentence that says where it is.
    """
    store = Store(root)
    store.open_pool()
    derived = prepare(store, derived_folder(store, folder), ProgressLine())
    return f"ready: {derived.folder}"
