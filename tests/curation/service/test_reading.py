"""Reading does not write: every question on a store that is mounted read-only, and on any store."""

import os
import shutil
import subprocess
import sys

import pytest

from echostill.curation.local import open_store
from echostill.platform.errors import UsageError
from echostill.platform.shards.watch import watch
from echostill.platform.tables.verify import verify_store

# Names that file systems take and that shells, URIs, globs and SQL read as something else.
AWFUL = "week #3?x=1&y;%20 'a' \"b\" [c]*{d}~"
MOUNT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
PRIVATE = ["unshare", "--mount", "--map-root-user", "sh", "-c", MOUNT]  # ends with the process

COMMANDS = """
query 'select coreset, count(*) from coresets group by coreset' --store STORE
query 'select * from quarantine' --store STORE --csv
why IMAGE --store STORE
neighbours IMAGE --store STORE
compare default spread --store STORE
export-coreset default OUT/chosen.csv --store STORE
atlas OUT/atlas.parquet --store STORE --side 0
verify STORE
watch STORE --no-follow
serve STORE --prepare-only
select store=STORE name=other budget=9 --dry-run
duplicates store=STORE --dry-run
pretrain store=STORE --dry-run
"""

RUN_ALL = """
import shlex, sys
from echostill.jobs.cli.main import main
values = dict(zip(("STORE", "IMAGE", "OUT"), sys.argv[1:]))
for line in sys.stdin:
    words = shlex.split(line)
    for name, value in values.items():
        words = [word.replace(name, value) for word in words]
    try:
        main(words)
    except SystemExit as end:
        if end.code:
            sys.exit(f"{line} ended with {end.code}")
try:
    open(values["STORE"] + "/probe", "w")
except OSError as error:
    print("the store:", error.strerror)
"""


def snapshot(root):
    """Every name in a folder with its size, its time and its bytes."""
    return {
        path.relative_to(root).as_posix(): (
            (path.stat().st_size, path.stat().st_mtime_ns, path.read_bytes())
            if path.is_file()
            else None
        )
        for path in root.rglob("*")
    }


@pytest.fixture
def awful_store(own_store, tmp_path):
    root = tmp_path / "outer" / AWFUL
    root.parent.mkdir()
    return own_store.rename(root)


def test_questions_write_nothing_into_a_store(awful_store, make, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # nothing is derived yet
    root, image = str(awful_store), make["identity"](5)
    before = snapshot(awful_store.parent)
    with open_store(root) as questions:
        assert questions.sql("select count(*) as n from pool").to_pylist() == [{"n": 240}]
        assert image in questions.why(image)
        assert len(questions.neighbours(image, 3)) == 3
        assert questions.compare("default", "spread")["text"]
        assert questions.export("default", str(tmp_path / "chosen.csv")) > 0
        assert questions.export_atlas(str(tmp_path / "atlas.parquet"), side=0) == 240
    assert verify_store(root).sound
    watch(root, follow=False)
    assert snapshot(awful_store.parent) == before


def test_work_in_a_copy_changes_no_byte_of_the_original(own_store, make, tmp_path):
    """MLflow's part of it is tested with its files."""
    copy = tmp_path / AWFUL
    shutil.copytree(own_store, copy)
    before = snapshot(own_store)
    make["pick"](copy, name="other", budget=9)
    with open_store(str(copy)) as questions:
        questions.ban([make["identity"](5)], author="anna", reason="phantom")
        assert questions.coreset("other")["budget"] == 9
        found = questions.sql("select count(*) as n from coresets where selected")
        assert found.to_pylist() == [{"n": 60 + 60 + 9}]
    assert verify_store(str(copy)).sound
    assert snapshot(own_store) == before
    with open_store(str(own_store)) as questions:
        assert sorted(item["name"] for item in questions.coresets()) == ["default", "spread"]


@pytest.mark.slow  # a process of its own, which imports most of the package
def test_every_reading_command_works_on_a_read_only_mount(awful_store, make, tmp_path):
    probe = [*PRIVATE, str(awful_store.parent), "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount")
    arguments = [str(awful_store), make["identity"](5), str(tmp_path)]
    command = [*PRIVATE, str(awful_store.parent), sys.executable, "-c", RUN_ALL, *arguments]
    lines = COMMANDS.strip() + "\n"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        command, input=lines, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the store: Read-only file system" in done.stdout


def test_what_writes_into_a_store_says_that_it_cannot(own_store, make):
    (own_store / "records" / "pins").write_bytes(b"")  # nothing can be made there
    with (
        open_store(str(own_store)) as questions,
        pytest.raises(UsageError, match=r"cannot be written \(File exists\)"),
    ):
        questions.pin([make["identity"](5)], author="anna", reason="typical")
