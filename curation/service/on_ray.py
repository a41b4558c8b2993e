"""The same application behind Ray Serve: what ``infra/serve.yaml`` deploys.

Serve brings its own HTTP server; the token and all limits are checked inside the application. There
is one replica: the queue of picks and the writer of pins belong to one process.
"""

from typing import Any

from echostill.curation.ingestion.settings import read_key_file
from echostill.curation.service.http.app import Options, create_app
from echostill.curation.service.http.security import SecurityMiddleware
from echostill.curation.service.http.token import find_token, token_path
from echostill.platform.config import Config
from echostill.platform.tables.store import Store


class ServeArguments(Config):
    """Arguments of the Serve application.

    Attributes:
        store: folder that every node can read, or URI.
        token_file: file of the token on the replica's node; default beside the store.
        hosts: names under which the service is reached.
        index_folder: of derived files, on a disk of the replica's node.
        address: of the Ray cluster that picks; "auto" is the one that Serve runs on.
        key_file: the pool's key on the replica's node, for withdrawals.
    """

    store: str
    token_file: str | None = None
    hosts: list[str] = []
    index_folder: str | None = None
    address: str | None = "auto"
    key_file: str | None = None


def application(arguments: ServeArguments) -> SecurityMiddleware:
    """Build the application on the replica."""
    store = Store(arguments.store)
    token, _ = find_token(token_path(store, arguments.token_file))
    hosts = tuple(arguments.hosts)
    key = read_key_file(arguments.key_file)
    folder, address = arguments.index_folder, arguments.address
    return create_app(Options(store.root, token, hosts, folder, address, key=key))


def build(arguments: dict[str, Any]) -> Any:
    """Build the Serve application; needs ``pip install "ray[serve]"``."""
    from ray import serve

    found = ServeArguments(**arguments)

    def make() -> SecurityMiddleware:  # Serve takes a plain function and calls it on the replica
        return application(found)

    ingress = serve.ingress(make)
    return serve.deployment(num_replicas=1, max_ongoing_requests=64)(ingress()).bind()
