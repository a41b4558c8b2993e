"""Commands of curation: serve a store, query it or a running service, explain, pin, check leaks."""

import csv
import json
import shlex
import sys
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from echostill.jobs.cli.options import CoresetOption, JsonOption, StoreOption
from echostill.platform.errors import UsageError
from echostill.platform.lazy import loading, spare_pandas

if TYPE_CHECKING:
    import pyarrow as pa

    from echostill.curation.questions import CoresetQuestions
    from echostill.curation.service.sql.workers import SqlPool

StoreNotUrlOption = Annotated[
    str | None, typer.Option("--store", "-s", help="Store; default runs/default.")
]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="URL of a running service, used instead of a store.")
]
TokenFileOption = Annotated[
    str | None,
    typer.Option("--token-file", help="File with the token; default the variable ECHOSTILL_TOKEN."),
]
AnyCoresetOption = Annotated[
    str | None,
    typer.Option("--coreset", help="Name of the coreset; 'default', or the newest, if left out."),
]
SelectedOption = Annotated[
    str, typer.Option("--selected", help="true, false or any: which rows to keep.")
]
SHOWN_CHARACTERS, SHOWN_ROWS = 60, 1000
DEFAULT_STORE = "runs/default"


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for name, command in COMMANDS.items():
        app.command(name)(command)


def serve_command(
    store: Annotated[str, typer.Argument(help="Folder or URI of the store.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 uses a free one.")] = 8420,
    token_file: Annotated[
        str | None,
        typer.Option("--token-file", help="File with the token; default next to the store."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="Another host name of the service."),
    ] = None,
    index_folder: Annotated[
        str | None,
        typer.Option(
            "--index-folder", help="Folder for derived files; default ~/.cache/echostill."
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster that selects coresets.")
    ] = None,
    ssl_keyfile: Annotated[str | None, typer.Option("--ssl-keyfile", help="For TLS.")] = None,
    ssl_certfile: Annotated[str | None, typer.Option("--ssl-certfile", help="For TLS.")] = None,
    key_file: Annotated[
        str | None,
        typer.Option("--key-file", help="The pool's key, to withdraw patients and groups."),
    ] = None,
    no_access_log: Annotated[
        bool, typer.Option("--no-access-log", help="Do not log requests.")
    ] = False,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Build the index and the map without serving.")
    ] = False,
) -> None:
    """Serve a store: select coresets, answer questions, show images.

    \b
    Example:
      echostill serve runs/quickstart
    """
    from echostill.curation.service import serving

    if prepare_only:
        print(serving.build_index(store, index_folder))
        return
    serving.serve(
        store,
        host=host,
        port=port,
        token_file=token_file,
        allowed_hosts=tuple(allowed_host or ()),
        index_folder=index_folder,
        address=address,
        ssl_keyfile=ssl_keyfile,
        ssl_certfile=ssl_certfile,
        key_file=key_file,
        access_log=not no_access_log,
    )


def query_command(
    sql: Annotated[str, typer.Argument(help="One SELECT over the store's views.")],
    store: StoreNotUrlOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    coreset: AnyCoresetOption = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Rows at most; default 1000, and all in a file."),
    ] = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    to: Annotated[
        str | None,
        typer.Option("--to", help="Write all rows to a file: .parquet, .arrow or .csv."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Query a store, or a running service, with SQL: views pool, scores, coreset, samples, ...

    \b
    Example:
      echostill query "select organ, count(*) from pool group by organ" --store runs/quickstart
      echostill query "from coreset where selected" --store runs/quickstart --to chosen.parquet
    """
    if to is not None and (as_json or as_csv):
        raise UsageError("--to writes a file, --json and --csv print: give one of them.")
    if to is None and overwrite:
        raise UsageError("--overwrite goes with --to.")
    with loading():
        from echostill.curation.service.sql.workers import SqlPool

        if url is None:
            import echostill.curation.service.sql.worker  # noqa: F401  (the launched copy has it)

            spare_pandas()
    with closing(SqlPool(1, forked=True)) as workers:
        if url is None:
            workers.launch()  # before this process has threads or has read the store
        with open_questions(store, url, token_file, workers) as questions:
            if to is not None:
                rows = questions.export_sql(
                    sql, to, coreset=coreset, limit=limit, overwrite=overwrite
                )
                print(f"{to}: {rows} rows")
                return
            table = questions.sql(sql, coreset=coreset, limit=limit or SHOWN_ROWS)
    if as_json:
        print(json.dumps(table.to_pylist(), indent=1, default=str))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows(row.values() for row in table.to_pylist())
    else:
        print(_as_text(table))
    if (table.schema.metadata or {}).get(b"truncated") == b"true":
        print(f"only the first {limit} rows; use --limit for more", file=sys.stderr)


def neighbours_command(
    image: Annotated[
        str, typer.Argument(help="Image id, a unique prefix of one, its source, or a file.")
    ],
    store: StoreNotUrlOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    coreset: AnyCoresetOption = None,
    k: Annotated[int, typer.Option("-k", min=1, max=200, help="How many.")] = 10,
    selected: SelectedOption = "any",
    other_groups: Annotated[
        bool, typer.Option("--other-groups", help="Leave out images of the same group.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Find the images nearest to one of the pool, or to an image file.

    \b
    Example:
      echostill neighbours 3f9a --store runs/quickstart
    """
    check_selected(selected)
    with open_questions(store, url, token_file) as questions:
        items = questions.neighbours(
            image, k, coreset=coreset, selected=selected, same_group=not other_groups
        )
    if as_json:
        print(json.dumps(items, indent=1))
        return
    for item in items:
        sample = item["sample"]
        chosen = "selected" if sample["selected"] else ""
        print(
            f"{item['similarity']:.4f}  {sample['image_id']}  {sample['organ'] or '-':<12}"
            f"{chosen:<10}{sample['source']}"
        )


def compare_command(
    a: Annotated[str, typer.Argument(help="Name of a coreset.")],
    b: Annotated[str, typer.Argument(help="Name of another one.")],
    store: StoreNotUrlOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Ids listed with --json.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Compare two coresets: images in both, entered and left, and shifted shares.

    \b
    Example:
      echostill compare default half --store runs/quickstart
    """
    with open_questions(store, url, token_file) as questions:
        found = questions.compare(a, b, limit=limit)
    print(json.dumps(found, indent=1) if as_json else found["text"])


def atlas_command(
    to: Annotated[str, typer.Argument(help="File to write, .parquet.")],
    store: StoreOption = DEFAULT_STORE,
    coreset: AnyCoresetOption = None,
    side: Annotated[
        int, typer.Option("--side", min=0, max=1024, help="Pixels of the pictures; 0 for none.")
    ] = 96,
) -> None:
    """Write the pool for embedding-atlas: map, pictures, metadata, scores, coreset.

    \b
    Example:
      echostill atlas runs/atlas.parquet --store runs/quickstart
    """
    from echostill.curation.local import open_store

    with open_store(store) as opened:
        rows = opened.export_atlas(to, coreset=coreset, side=side)
    image = " --image image" if side else ""
    print(f"{to}: {rows} images. To view them:")
    print(f"  embedding-atlas {shlex.quote(to)} --x x --y y{image} --disable-projection")


def pin_command(
    image: Annotated[str, typer.Argument(help="Image id, a unique prefix of one, or its source.")],
    reason: Annotated[str, typer.Option("--reason", help="Why.")],
    store: StoreOption = DEFAULT_STORE,
    author: Annotated[
        str | None, typer.Option("--author", help="Who; default the user's name.")
    ] = None,
    ban: Annotated[bool, typer.Option("--ban", help="Never choose it, instead of always.")] = False,
) -> None:
    """Make the next selections always choose an image, or never (--ban).

    \b
    Example:
      echostill pin 3f9a --reason "typical four-chamber view" --store runs/quickstart
    """
    import getpass

    from echostill.curation.selection.decided.pin_table import BAN, PIN, add_pin
    from echostill.curation.selection.explain.explain import find_image
    from echostill.platform.tables.store import Store

    spare_pandas()
    opened = Store(store)
    image_id = find_image(image, opened.open_pool().read(["image_id", "source"]))
    who = author or getpass.getuser()
    pin = add_pin(opened, BAN if ban else PIN, [image_id], author=who, reason=reason)
    print(f"{pin.pin_id}: {image_id} {'banned' if ban else 'pinned'} by {who}")


def why_command(
    image: Annotated[str, typer.Argument(help="Image id, a unique prefix of one, or its source.")],
    store: StoreOption = DEFAULT_STORE,
    coreset: CoresetOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Explain why an image is, or is not, in the coreset.

    \b
    Example:
      echostill why 3f9a --store runs/quickstart
    """
    with loading():
        from echostill.curation import why

        spare_pandas()
    answer = why(store, coreset, image)
    print(json.dumps(answer.as_dict(), indent=1) if as_json else answer.text)


def leakcheck_command(
    store: Annotated[str, typer.Argument(help="The store with the pool.")],
    benchmarks: Annotated[
        list[str] | None,
        typer.Argument(help="Manifests (CSV, Parquet), image folders, or stores."),
    ] = None,
    bench: Annotated[
        list[str] | None,
        typer.Option("--bench", help="A prepared set, or a folder of them; repeatable."),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Exit 0 even if there are leaks; they are recorded.")
    ] = False,
    near_distance: Annotated[
        int | None,
        typer.Option(
            "--near-distance", min=0, max=64, help="Bits of 256 that two copies may differ in."
        ),
    ] = None,
    semantic_epsilon: Annotated[
        float | None,
        typer.Option("--semantic-epsilon", min=1e-6, max=1, help="Largest 1 - cosine of features."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Search for benchmark images in a pool; a selection leaves them out. Exit 1 on leaks.

    \b
    Example:
      echostill leakcheck runs/quickstart examples/quickstart/benchmark/liver.csv
      echostill leakcheck runs/mine --bench runs/bench
    """
    from echostill.curation import LeakSettings, check_leaks
    from echostill.eval.unius.prepared import bench_manifests

    prepared = [path for folder in bench or [] for path in bench_manifests(folder)]
    given = {"near_distance": near_distance, "semantic_epsilon": semantic_epsilon}
    settings = LeakSettings().model_copy(update={k: v for k, v in given.items() if v is not None})
    report = check_leaks(store, [*(benchmarks or []), *prepared], settings)
    print(json.dumps(report.as_dict()) if as_json else report.describe())
    if not report.clean and not record:
        raise typer.Exit(1)


COMMANDS: dict[str, Callable[..., None]] = {
    "serve": serve_command,
    "query": query_command,
    "neighbours": neighbours_command,
    "compare": compare_command,
    "atlas": atlas_command,
    "pin": pin_command,
    "why": why_command,
    "leakcheck": leakcheck_command,
}


def open_questions(
    store: str | None, url: str | None, token_file: str | None, sql: "SqlPool | None" = None
) -> "CoresetQuestions":
    """Open what a question is for: a running service, or a store, whose queries ``sql`` runs."""
    if store is not None and url is not None:
        raise UsageError("give --store or --url, not both.")
    with loading():
        spare_pandas()
        if url is not None:
            from echostill.curation.client import connect
        else:
            from echostill.curation.local import open_store
    if url is not None:
        return connect(url, token_file=token_file)
    return open_store(store or DEFAULT_STORE, sql=sql)


def check_selected(selected: str) -> None:
    """Refuse what is no value of ``--selected``."""
    if selected not in ("true", "false", "any"):
        raise UsageError(f"--selected '{selected}' is not valid: expected true, false or any.")


def _as_text(table: "pa.Table") -> str:
    rows = [[_cell(value) for value in row.values()] for row in table.to_pylist()]
    widths = [
        max(len(cell) for cell in column) for column in zip(table.column_names, *rows, strict=True)
    ]
    lines = [table.column_names, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
