import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echostill.platform.errors import UsageError
from echostill.platform.names import LONGEST, check_name
from echostill.platform.stages import STAGES
from echostill.platform.tables.fingerprint import Claim, Fingerprint
from echostill.platform.tables.store import Store

BAD = [
    "",
    ".",
    "..",
    "../pool",
    "a/b",
    "a\\b",
    "/x",
    "~",
    "-x",
    ".x",
    "x.",
    "x ",
    "a:b",
    "a*",
    "a?",
]
BAD += [
    "a#b",
    "a%2fb",
    "a\nb",
    "a\0b",
    "con",
    "NUL.txt",
    "x" * (LONGEST + 1),
    "a;b",
    "a'b",
    'a"b',
    "$x",
]
GOOD = [
    "default",
    "2026",
    "no",
    "007",
    "week 3",
    "größe",
    "乳腺",
    "a.b-c_d+e@f=g",
    "_x",
    "x" * LONGEST,
]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_name(name, tmp_path):
    with pytest.raises(UsageError, match="cannot be a name"):
        check_name(name)
    store = Store(str(tmp_path / "store"))
    for place in (store.coreset, store.run, store.report, store.teacher_cache, store.sweep):
        with pytest.raises(UsageError, match="cannot be a name"):
            place(name)
    with pytest.raises(UsageError):
        store.open_coreset(name)


@pytest.mark.parametrize("name", GOOD)
def test_what_is_a_name(name):
    assert check_name(name) == name


def test_one_name_in_two_unicode_forms_is_one_name():
    assert check_name("gro\u0308ße") == check_name("gr\u00f6ße")


def fingerprint(value):
    return Fingerprint({"value": value}, "0", {}, {})


@given(st.text(max_size=30), st.sampled_from(sorted(STAGES)), st.booleans())
@example("../pool", "select", True)
@example("../runs/distilled-0", "select", True)
@example("..", "evaluate", True)
def test_no_name_reaches_out_of_its_folder(tmp_path_factory, name, stage, overwrite):
    root = tmp_path_factory.mktemp("names")
    store = Store(str(root / "store"))
    for folder in ("pool", "scores", "runs/distilled-0", "coresets/kept", "reports/kept"):
        Claim(store.storage.at(folder), fingerprint(0), "other", "a table").take(False)
        store.storage.at(folder).write("part", b"pixels")
    before = {n: store.storage.read(n) for n in store.storage.list(recursive=True)}
    (root / "beside").write_text("not the store's")
    for place in (store.coreset, store.run, store.report, store.teacher_cache, store.sweep):
        try:
            Claim(place(name), fingerprint(1), stage, "a result").take(overwrite)
        except UsageError:
            continue
    after = {n: store.storage.read(n) for n in store.storage.list(recursive=True)}
    assert {n: after[n] for n in before} == before
    assert (root / "beside").read_text() == "not the store's"
    assert sorted(p.name for p in root.iterdir()) == ["beside", "store"]


def test_overwrite_replaces_what_the_same_stage_made_and_nothing_else(tmp_path):
    storage = Store(str(tmp_path)).run("x")
    Claim(storage, fingerprint(0), "distill", "a run").take(False)
    storage.write("train/checkpoint", b"1")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="made by `echostill distill`"):
            Claim(storage, fingerprint(1), "pretrain", "a run").take(overwrite)
    with pytest.raises(UsageError, match="refused: value 0 -> 1"):
        Claim(storage, fingerprint(1), "distill", "a run").take(False)
    assert storage.read("train/checkpoint") == b"1"
    Claim(storage, fingerprint(1), "distill", "a run").take(True)
    assert storage.list(recursive=True) == ["fingerprint.json"]


def test_a_folder_of_before_says_its_maker_in_its_manifest(tmp_path):
    storage = Store(str(tmp_path)).run("x")
    storage.write("fingerprint.json", json.dumps(fingerprint(0).as_dict()).encode())
    Claim(storage, fingerprint(0), "pretrain", "a run").take(False)
    storage.write("manifest.json", b'{"stage": "distill"}')
    with pytest.raises(UsageError, match="made by `echostill distill`"):
        Claim(storage, fingerprint(1), "pretrain", "a run").take(True)


def test_files_that_no_stage_made_are_not_built_upon(tmp_path):
    storage = Store(str(tmp_path)).coreset("mine")
    storage.write("notes.txt", b"mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"not empty.*notes\.txt"):
            Claim(storage, fingerprint(0), "select", "a coreset").take(overwrite)
    assert storage.list(recursive=True) == ["notes.txt"]


def test_every_name_of_a_configuration_is_checked():
    from echostill.jobs.stages import HOMES, find_stage
    from echostill.platform.values import models_in

    named = {"name", "coreset", "runs", "cache_name"}
    seen = set()
    waiting = [find_stage(name).config for name in HOMES]
    while waiting:
        model = waiting.pop()
        if model in seen:
            continue
        seen.add(model)
        for key, field in model.model_fields.items():
            waiting += models_in(field.annotation)
            if key in named and not (model.__name__ == "TaskSettings" and key == "name"):
                text = str(field.annotation) + str(field.metadata)
                assert "check_name" in text or "_validate" in text, f"{model.__name__}.{key}"
