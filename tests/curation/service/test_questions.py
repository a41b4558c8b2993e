"""The same questions to a running service and to its store: the same answers, the same errors."""

import json

import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echostill.curation import connect
from echostill.curation.local import LocalStore, open_store
from echostill.curation.questions import CoresetQuestions
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.imaging.images import encode_png
from echostill.platform.tables.store import Store

pytestmark = pytest.mark.slow

QUERY = "select organ, count(*) as images from pool group by organ order by organ"


@pytest.fixture(scope="module")
def service(live, make):
    with connect(live.url, make["token"]) as client:
        yield client


@pytest.fixture(scope="module")
def store(live):
    with open_store(str(live.root)) as found:
        yield found


@pytest.fixture(scope="module", params=["service", "store"])
def questions(request) -> CoresetQuestions:
    return request.getfixturevalue(request.param)


IMAGE, LOST = 12, 239  # the second is in the quarantine
SAME = [
    lambda ask, image: ask.pool(),
    lambda ask, image: ask.coresets(),
    lambda ask, image: ask.coreset("spread"),
    lambda ask, image: ask.stats("default"),
    lambda ask, image: list(ask.samples("default")),
    lambda ask, image: list(
        ask.samples(
            "spread",
            selected="any",
            organ=["heart", "liver"],
            device="CX50",
            source="scan_0",
            min="distance:0.05",
            max=["dual_rank:0.9", "cluster:6"],
            sort="-gradient",
        )
    ),
    lambda ask, image: list(ask.samples("default", selected="false", cluster=[1, 3])),
    lambda ask, image: list(ask.samples("default", selected="any", group_id="clip3", cluster=2)),
    lambda ask, image: ask.table("spread", organ="heart"),
    lambda ask, image: ask.compare("default", "spread", limit=3),
    lambda ask, image: ask.clusters(coreset="spread", sort="-size"),
    lambda ask, image: ask.cluster(2, coreset="spread"),
    lambda ask, image: ask.image(image(IMAGE)),
    lambda ask, image: ask.image(image(LOST), coreset="spread"),
    lambda ask, image: ask.why(image(IMAGE), coreset="spread"),
    lambda ask, image: ask.find("scan_001", limit=7, coreset="spread"),
    lambda ask, image: ask.find(image(IMAGE)[:6]),
    lambda ask, image: ask.look_up(rows=[3, 0, 3, 239], ids=[image(9), image(LOST)]),
    lambda ask, image: ask.thumbnail(image(IMAGE), size=32),
    lambda ask, image: ask.thumbnail(image(IMAGE), format="png"),
    lambda ask, image: ask.neighbours(image(IMAGE)),
    lambda ask, image: ask.neighbours(image(3)[:8], 5, coreset="spread", selected="true"),
    lambda ask, image: ask.neighbours("ward 3/scan_0003.png", 5, selected="false"),
    lambda ask, image: ask.neighbours("scan_0003.png", 9, same_group=False),
    lambda ask, image: ask.map(coreset="spread"),
    lambda ask, image: ask.map(sample=60),
    lambda ask, image: ask.views(),
    lambda ask, image: ask.sql(QUERY),
    lambda ask, image: ask.sql("from coreset where selected order by image_id", coreset="spread"),
    lambda ask, image: ask.sql("select ? + 1 as a, ? as b", [2, "x"]),
    lambda ask, image: ask.sql("from pool order by image_id", limit=5),
    lambda ask, image: ask.pins(history=True),
]


@pytest.mark.parametrize("question", SAME, ids=lambda q: f"{q.__code__.co_firstlineno}")
def test_both_give_the_same_answer(service, store, make, question):
    first, second = (question(ask, make["identity"]) for ask in (service, store))
    assert type(first) is type(second)
    if isinstance(first, pa.Table):
        assert first.equals(second, check_metadata=True)
    elif isinstance(first, bytes):
        assert first == second
    else:  # also the types and the order of members
        assert json.dumps(first) == json.dumps(second)


WRONG = [
    (lambda ask, image: ask.coreset("defalt"), UsageError, "Did you mean 'default'"),
    (lambda ask, image: ask.stats("none"), UsageError, "no coreset 'none'"),
    (lambda ask, image: list(ask.samples("none")), UsageError, "no coreset 'none'"),
    (lambda ask, image: list(ask.samples("default", sort="x")), UsageError, "cannot sort by 'x'"),
    (lambda ask, image: list(ask.samples("default", min="x:1")), UsageError, "cannot bound 'x'"),
    (lambda ask, image: list(ask.samples("default", max="frame:x")), UsageError, "column:number"),
    (lambda ask, image: ask.samples("default", orgam="x"), UsageError, "Did you mean 'organ'"),
    (lambda ask, image: ask.table("default", sort="frame"), UsageError, "unknown filter 'sort'"),
    (lambda ask, image: ask.export("default", "a.txt"), UsageError, "must end in .parquet"),
    (lambda ask, image: ask.compare("default", "none"), UsageError, "no coreset 'none'"),
    (lambda ask, image: ask.clusters(sort="colour"), UsageError, "cannot sort by 'colour'"),
    (lambda ask, image: ask.cluster(8), UsageError, "no cluster 8"),
    (lambda ask, image: ask.image(image(5)[:-1] + "f"), UsageError, "Did you mean"),
    (lambda ask, image: ask.find("abc"), UsageError, "at least 4 characters"),
    (lambda ask, image: ask.resolve("scan_00"), UsageError, "no image 'scan_00'"),
    (lambda ask, image: ask.resolve("ward 1/scan_00"), UsageError, "matches 25 images"),
    (lambda ask, image: ask.look_up(rows=[240]), UsageError, "there is no row 240"),
    (lambda ask, image: ask.thumbnail("none"), UsageError, "no image 'none'"),
    (lambda ask, image: ask.neighbours("none.png"), UsageError, r"no image 'none\.png'"),
    (lambda ask, image: ask.neighbours(image(LOST)), UsageError, "was not scored"),
    (lambda ask, image: ask.map(coreset="none"), UsageError, "no coreset 'none'"),
    (lambda ask, image: ask.sql("from pol"), UsageError, "there is no view 'pol'"),
    (lambda ask, image: ask.sql("from pool", coreset="none"), UsageError, "no coreset 'none'"),
    (
        lambda ask, image: ask.sql("select count(*) from range(1000000000000)", timeout=0.3),
        EchostillError,
        "timeout",
    ),
    (
        lambda ask, image: ask.export_sql("from pool", "a.txt"),
        UsageError,
        r"end in \.parquet, \.arrow",
    ),
    (lambda ask, image: ask.export_sql("from pol", "a.csv"), UsageError, "view 'pol'. Did you"),
    (lambda ask, image: ask.pin(["none"], author="a", reason="b"), UsageError, "no image 'none'"),
    (lambda ask, image: ask.unpin("p-9", author="a", reason="b"), UsageError, "no pin 'p-9'"),
]


@pytest.mark.parametrize(("question", "kind", "words"), WRONG, ids=[words for _, _, words in WRONG])
def test_both_raise_the_same_error(service, store, make, question, kind, words):
    found = []
    for ask in (service, store):
        with pytest.raises(EchostillError, match=words) as caught:
            question(ask, make["identity"])
        found.append((type(caught.value), str(caught.value)))
    assert found[0] == found[1]
    assert found[0][0] is kind


def test_the_answers_are_about_this_store(questions, make):
    image_id = make["identity"](12)
    assert questions.pool()["images"] == 240
    assert questions.coreset("default")["budget"] == 60
    assert questions.stats("default")["selected"] == 60
    assert questions.compare("default", "spread")["a"] == "default"
    assert questions.thumbnail(image_id)[:2] == b"\xff\xd8"
    assert questions.clusters().num_rows == 8
    assert questions.cluster(0)["cluster"] == 0
    assert 20 < questions.map(sample=50).num_rows < 120


def test_samples_are_all_of_the_coreset(questions, live, monkeypatch):
    monkeypatch.setattr("echostill.curation.client.PAGE", 50)
    monkeypatch.setattr("echostill.curation.service.answers.samples.ROWS_PER_READ", 50)
    found = list(questions.samples("default", selected="any"))
    assert len(found) == 236
    assert len(list(questions.samples("default", selected="any", organ=["heart", "liver"]))) == 118
    table = Store(str(live.root)).open_coreset("default").read().sort_by("image_id")
    assert [item["reason"] for item in found] == table["reason"].to_pylist()


def test_a_table_is_the_coreset(questions):
    table = questions.table("spread")
    assert table.num_rows == 60
    assert table["selected"].to_pylist() == [True] * 60
    assert questions.table("spread", selected="any").num_rows == 236


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_exports_are_whole_files(questions, tmp_path, kind):
    path = tmp_path / "new" / f"c.{kind}"
    assert questions.export("default", str(path), selected="any") == path.stat().st_size > 1000
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    if kind == "parquet":
        assert pq.read_table(path).num_rows == 236
    with pytest.raises(UsageError, match="no coreset"):
        questions.export("none", str(tmp_path / f"x.{kind}"))
    assert not (tmp_path / f"x.{kind}").exists()


def test_queries_give_arrow_or_pandas(questions):
    table = questions.sql(QUERY)
    assert table.to_pydict() == {"organ": ["", "heart", "liver", "lung"], "images": [60] * 4}
    frame = questions.sql("select * from pool where organ = ?", ["heart"], pandas=True)
    assert len(frame) == 60
    cut = questions.sql("from pool", limit=5)
    assert (cut.num_rows, cut.schema.metadata[b"truncated"]) == (5, b"true")
    assert questions.sql("from pool", limit=240).schema.metadata[b"truncated"] == b"false"


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])
def test_answers_are_whole_files(questions, tmp_path, kind, monkeypatch):
    """Also of more rows than the limits on what is shown or sent as JSON."""
    path = tmp_path / "new" / f"answer.{kind}"
    text = "select range as number, ? as word from range(150000)"
    assert questions.export_sql(text, str(path), ["x"]) == 150_000
    read = {"parquet": polars.read_parquet, "arrow": polars.read_ipc, "csv": polars.read_csv}
    assert read[kind](path)["number"].to_list() == list(range(150_000))
    with pytest.raises(UsageError, match="exists"):
        questions.export_sql("from pool", str(path))
    rows = questions.export_sql("from coreset", str(path), coreset="spread", overwrite=True)
    assert (rows, len(read[kind](path))) == (236, 236)
    assert questions.export_sql("from pool", str(path), limit=7, overwrite=True) == 7
    endless = "select count(*) from range(1000000000000)"
    with pytest.raises(EchostillError, match="timeout"):
        questions.export_sql(endless, str(path), timeout=0.3, overwrite=True)
    assert len(read[kind](path)) == 7
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_names_mean_images(questions, make):
    image_id = make["identity"](12)
    for name in (image_id, image_id[:8].upper(), "ward 0/scan_0012.png", "scan_0012.png"):
        assert questions.resolve(name) == image_id
    assert questions.find("scan_0012")[0]["image_id"] == image_id
    assert questions.why(image_id) == questions.image(image_id)["why"]["text"]
    assert len(questions.neighbours(image_id, 4, selected="true")) == 4


def test_pins_and_bans(questions, make):
    images = [make["identity"](30), make["identity"](31)]
    pin = questions.pin(images, author="a", reason="b")
    ban = questions.ban(images[:1], author="a", reason="b")
    assert [item["id"] for item in questions.pins()[:2]] == [ban["id"], pin["id"]]
    assert [item["pin"] for item in questions.look_up(ids=images)] == ["ban", "pin"]
    for item in (pin, ban):
        assert questions.unpin(item["id"], author="c", reason="d")["removed"]["author"] == "c"
    assert [item["pin"] for item in questions.look_up(ids=images)] == [None, None]


def test_an_upload_is_its_own_nearest_neighbour(own_store, make, tmp_path):
    upload = tmp_path / "upload.png"
    upload.write_bytes(encode_png(make["picture"](4)))
    make["with_teacher"](own_store)
    running = make["running"](own_store)
    with connect(running.live.url, make["token"]) as service, open_store(str(own_store)) as store:
        answers = [ask.neighbours(upload, 3, coreset="default") for ask in (service, store)]
    running.stop()
    assert answers[0] == answers[1]
    assert len(answers[0]) == 3


def test_derived_files_are_built_when_they_are_needed(tmp_path, make, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where there are none
    root = tmp_path / "store"
    make["write_store"](root)
    stages = []
    store = LocalStore(str(root), lambda stage, fraction: stages.append(stage))
    assert {stage.partition(":")[0] for stage in stages} == {"catalogue", "ready"}
    assert stages[-1] == "ready"
    assert store.pool()["dimension"] is None
    assert len(store.neighbours(make["identity"](3), 5)) == 5
    assert store.pool()["dimension"] == 64
    assert {stage.partition(":")[0] for stage in stages} == {"catalogue", "neighbours", "ready"}
    assert store.map().num_rows == 236
    store.close()
