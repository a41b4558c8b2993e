import dataclasses
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from echostill.curation.scoring.stage import ScoreConfig
from echostill.curation.selection.stage import SelectConfig
from echostill.distill import DistillConfig
from echostill.eval.comparisons import DEFAULT, resolve
from echostill.eval.names import ROLES
from echostill.eval.predictions import PREDICTIONS_SCHEMA
from echostill.eval.reporting.copies import CopyCounts, copies, near_copies
from echostill.eval.reporting.data import Material, StageCounts, gather, without_paths
from echostill.eval.reporting.gallery import Rows, clusters_of, galleries
from echostill.eval.reporting.labels import DEFAULTS, labelled_values
from echostill.eval.reporting.outcome import outcome
from echostill.eval.reporting.pool import accounts, contributors, quality_flags, quarantined
from echostill.eval.reporting.results import Results
from echostill.eval.reporting.stage import ReportConfig, plan_report, recipe_of, render, report
from echostill.eval.summary import TaskInfo, summarise
from echostill.platform.config import result_relevant
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import encode_png
from echostill.platform.tables.fingerprint import Claim, Fingerprint
from echostill.platform.tables.schemas import (
    CORESET_SCHEMA,
    POOL_SCHEMA,
    QUALITY_ISSUES,
    QUARANTINE_SCHEMA,
    scores_schema,
)
from echostill.platform.tables.store import Store, finish_run, save_configuration
from echostill.platform.tables.table import write_table

pytestmark = pytest.mark.slow

IMAGES = 60
HOSTILE = "<script>alert('x')</script>&\"$x$"
VOID = {"meta", "img", "br", "link", "input", "hr", "wbr"}


def ranks(values):
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") + 1


def make_coreset(rng, ids):
    cluster = np.sort(rng.integers(0, 4, IMAGES))
    distance, gradient = rng.random(IMAGES), rng.random(IMAGES)
    columns = {name: np.zeros(IMAGES, dtype=np.int64) for name in CORESET_SCHEMA.names}
    for number in range(4):
        own = np.flatnonzero(cluster == number)
        columns["cluster_size"][own] = len(own)
        columns["quota"][own] = round(len(own) / 3)
        columns["distance_rank"][own] = ranks(distance[own])
        columns["gradient_rank"][own] = ranks(-gradient[own])
        fused = (columns["distance_rank"][own] + columns["gradient_rank"][own]) / 2
        columns["cluster_rank"][own] = ranks(fused)
    size = columns["cluster_size"]
    dual = (columns["distance_rank"] + columns["gradient_rank"]) / 2 / size
    selected = columns["cluster_rank"] <= columns["quota"]
    columns |= {
        "image_id": ids,
        "group_id": [f"group {i // 2}" for i in range(IMAGES)],
        "cluster": cluster,
        "distance": distance,
        "gradient": gradient,
        "dual_rank": dual,
        "selected": selected,
        "reason": ["selected: why" if s else f"not selected: {HOSTILE}" for s in selected],
    }
    arrays = [pa.array(columns[f.name]).cast(f.type) for f in CORESET_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=CORESET_SCHEMA)


def make_pool(rng, ids):
    rows = []
    for index, image_id in enumerate(ids):
        pixels = rng.integers(0, 255, (40, 48), dtype=np.uint8)
        rows.append(
            {
                "image_id": image_id,
                "group_id": f"group {index // 2}",
                "source": f"folder/{HOSTILE}_{index}.png",
                "organ": ["liver", HOSTILE, ""][index % 3],
                "device": "" if index % 2 else "probe $5",
                "label": "",
                "frame": 0,
                "image": encode_png(pixels),
                "width": 48,
                "height": 40,
                "original_width": 480 + index,
                "original_height": 400,
                "colour": False,
                "content_hash": image_id,
                "mean": 0.5,
                "contrast": 0.2,
                "blank": index < 3,
                "dark": None,
            }
        )
    return pa.Table.from_pylist(rows, schema=POOL_SCHEMA)


def make_run(store, name, objective, weight_std, coreset):
    storage = store.run(name)
    config = DistillConfig.model_validate_json(
        json.dumps({"students": [{"name": name.rpartition("-")[0], "objective": objective}]})
    )
    save_configuration(storage, config)
    rows = []
    for step in (1, 10, 20):
        row = {
            "step": step,
            "epoch": step / 10,
            "loss": 1 / step,
            "reconstruction_spatial": 0.5 / step,
            "reconstruction_frequency": 0.2 / step,
            "learning_rate": 1e-3,
            "gradient_norm": 0.3,
        }
        if weight_std is not None:
            row |= {"distillation": 2 / step, "weight_mean": 0.8, "weight_std": weight_std}
            row |= {"consistency_mean": 0.6, "consistency_std": 0.2}
            row |= {"weight_error_correlation": -0.4 + step / 100}
            organs = {f"weight_by_organ/organ {n}": n / 20 for n in range(14)}
            row |= {**organs, "weight_by_device/not stated": 0.75}
        rows.append(row)
    storage.write("metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode())
    storage.write("reconstructions.png", encode_png(np.full((30, 50, 3), 90, dtype=np.uint8)))
    files = ["metrics.jsonl", "reconstructions.png"]
    made = Fingerprint({}, "0", {}, {"coreset": coreset})
    finish_run(storage, stage="distill", files=files, fingerprint=made)


def make_evaluation():
    """Images in 40 groups; each candidate is right as often as its mean says."""
    means = {"teacher": 0.9, "distilled student": 0.8, "MIM-only student": 0.7}
    means["untrained student"] = 0.5
    roles = dict(zip(means, ROLES, strict=True))
    runs = {"distilled student": "distilled-0", "MIM-only student": "MIM-only-0"}
    names = ["benign", HOSTILE]
    tasks = [
        {"name": "liver <b>", "kind": "classification", "classes": names},
        {"name": "head", "kind": "segmentation", "classes": ["head"]},
    ]
    for task in tasks:
        task |= {"images": 80, "groups": 40, "tested": 80, "protocol": "5 folds by group"}
        task |= {"notes": ["2 images are identical"], "remarks": []}
    same = {"kind": "identical", "files": ["a.png", "b.png"], "groups": ["1", "2"]}
    tasks[0]["remarks"] = [{**same, "labels": names, "contradicts": True}]
    candidates, rows = [], []
    for label in means:
        scale = 10.0 if label == "teacher" else 1.0
        candidates.append(
            {
                "label": label,
                "role": roles[label],
                "model": "usfm-micro" if label == "teacher" else "tinyusfm-micro",
                "runs": [runs[label]] if label in runs else [],
                "parameters": int(1e5 * scale),
                "gflops": 0.1 * scale,
                "gflops_paper": 0.08 * scale,
                "latency_ms": 2.0 * scale,
                "images_per_second": 500 / scale,
                "threads": 1,
            }
        )
    truth = np.arange(80) // 2 % 2
    for number, (label, mean) in enumerate({**means, "constant": 0, "thumbnail": 0.6}.items()):
        for training in range(3 if label == "untrained student" else 1):
            random = np.random.default_rng([number, training])
            right = random.permutation(80) < 80 * mean if mean else truth == 0
            overlap = 0.6 + 0.02 * random.random(80)  # on the head all are equally good
            shared = {"candidate": label, "run": runs.get(label, ""), "training": training}
            shared |= {"method": "linear probe" if mean else "constant"}
            shared |= {"shots": 0, "draw": 0, "fold": 0}
            for index in range(80):
                own = {**shared, "image": f"{index:02d}.png", "group_id": f"g{index // 2}"}
                said = names[truth[index] if right[index] else 1 - truth[index]]
                liver = {"task": "liver <b>", "label": names[truth[index]], "predicted": said}
                rows.append({**own, **liver, "scores": [float(said == name) for name in names]})
                head = {"dice": [overlap[index]], "iou": [0.5], "hd95": [100 * (1 - mean)]}
                rows.append({**own, "task": "head", "label": "", "predicted": "", **head})
                if mean and index % 2:
                    rows.append({**own, **liver, "method": "few-shot", "shots": 5})
    table = pa.Table.from_pylist(rows, schema=PREDICTIONS_SCHEMA)
    infos = [TaskInfo(t["name"], t["kind"], tuple(t["classes"])) for t in tasks]
    numbers = summarise(table, infos, resolve(DEFAULT, roles), 0)
    return {"format": 2, "tasks": tasks, "folds": 5, "seed": 0, "candidates": candidates, **numbers}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    store = Store(str(tmp_path_factory.mktemp("store")))
    ids = [f"{i:032x}" for i in range(IMAGES)]
    empty: dict = {}
    counted = {"rows_in": IMAGES + 3, "quarantined": 3}
    write_table(store.pool(), make_pool(rng, ids), stage="ingest", fingerprint=empty,
                rows_per_part=25, extra=counted)  # fmt: skip
    held = [
        {
            "stage": "ingest",
            "id": f"{i}",
            "source": f"{HOSTILE}.png",
            "error_class": "DecodeError",
            "message": f"is damaged: '{store.root}/secret/place/file.png' {HOSTILE}",
        }
        for i in range(3)
    ]
    write_table(store.quarantine("ingest"), pa.Table.from_pylist(held, schema=QUARANTINE_SCHEMA),
                stage="ingest", fingerprint=empty)  # fmt: skip
    schema = scores_schema(4, 3)
    rows = [
        {
            "image_id": image_id,
            "feature": np.full(4, 0.5, dtype=np.float16),
            "gradient_mean": 1.0,
            "gradient_std": 0.1,
            "gradient": rng.random(3).tolist(),
            "reconstruction_error": 0.1,
        }
        for image_id in reversed(ids)
    ]
    write_table(store.scores(), pa.Table.from_pylist(rows, schema=schema), stage="score",
                fingerprint=empty)  # fmt: skip
    save_configuration(store.scores(), ScoreConfig())
    write_table(store.coreset("default"), make_coreset(rng, ids), stage="select",
                fingerprint=empty)  # fmt: skip
    save_configuration(store.coreset("default"), SelectConfig())
    digest = store.open_coreset("default").digest
    make_run(store, "distilled-0", {"preset": "tinyusfm"}, 0.01, digest)
    make_run(store, "MIM-only-0", {"preset": "mim-only"}, None, "another")
    Claim(store.report("default"), Fingerprint({}, "0", {}, {}), "evaluate", "an evaluation").take(
        False
    )
    store.report("default").write("evaluation.json", json.dumps(make_evaluation()).encode())
    return store


@pytest.fixture(scope="module")
def material(store) -> Material:
    return gather(store, "default", "default", ())


@pytest.fixture(scope="module")
def page(store) -> str:
    report(ReportConfig(store=store.root))
    return store.report("default").read("report.html").decode()


class Walk(HTMLParser):
    """Collects what a browser would see, and checks that elements close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.ids, self.targets = [], [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.elements.append((tag, values))
        if "id" in values:
            self.ids.append(values["id"])
        self.targets += [v[1:] for k, v in attributes if k.endswith("href") and v[0] == "#"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def walk(page) -> Walk:
    walk = Walk()
    walk.feed(page)
    assert walk.open == []
    return walk


def test_page_is_self_contained(page, walk, store):
    assert len(page) < 4e6
    assert store.root not in page
    assert "secret/place" not in page
    for tag, values in walk.elements:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "xlink:href"):
            if name in values:
                assert values[name].startswith(("data:image/", "#"))
    outside = re.findall(r"url\((?!#)", page) + re.findall(r"@import", page)
    assert outside == []


def test_data_is_escaped(page):
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(" in page


def test_ids_are_unique_and_links_meet_one(walk):
    assert len(walk.ids) == len(set(walk.ids))
    assert set(walk.targets) <= set(walk.ids)


def test_pictures_and_tables_are_described(walk):
    tags = [tag for tag, _ in walk.elements]
    assert all(values.get("alt") for tag, values in walk.elements if tag == "img")
    drawn = [values for tag, values in walk.elements if tag == "svg"]
    assert len(drawn) >= 10
    assert all(values["role"] == "img" and values["aria-label"] for values in drawn)
    assert tags.count("table") == tags.count("caption")
    assert tags.count("h1") == 1
    assert tags.count("h2") == tags.count("section") == 9


def test_colours_follow_the_page(page):
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "var(--accent)" in drawn
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", drawn)) == set()


def test_same_store_gives_the_same_bytes(store, material, page):
    config = ReportConfig(store=store.root)
    assert render(material, config.sizes, recipe_of(store, config, material)) == page


def test_accounting_and_warnings(page):
    assert "<strong>63</strong> rows in = <strong>60</strong> rows out + <strong>3</strong>" in page
    assert "inert weight: the consistency weight" in page
    assert "organ 0 0.000, organ 1 0.050" in page
    assert "organ 5 0.250, …, organ 8 0.400" in page
    assert "not stated 0.750" in page
    assert "-0.30" in page
    assert "MIM-only-0 was trained on another coreset" in page


def test_rows_that_do_not_add_up_are_told(material):
    broken = dataclasses.replace(material, accounting=[StageCounts("ingest", 70, 60, 3)])
    told = "".join(str(piece) for piece in accounts(broken))
    assert "do not add up: +7 rows" in told


def test_what_ingest_passed_over_is_told(material):
    told = "".join(str(piece) for piece in quarantined(material))
    assert "Passed over" not in told
    passed = dataclasses.replace(material, passed_over={".pdf": 3, "CT (DICOM)": 1200})
    told = "".join(str(piece) for piece in quarantined(passed))
    assert "no pictures or not read: 1,200 CT (DICOM), 3 .pdf." in told


def test_who_contributed_to_a_merged_pool_is_told(material):
    assert contributors(material) == []
    counts = {"merged": 1200, "duplicates": 3, "withdrawn": 0, "groups": 40, "devices": ""}
    north = {"store": "north", **counts, "organs": "liver 1200", "licence": "", "groups_join": True}
    south = {**north, "store": "<south>", "groups_join": False}
    merged = dataclasses.replace(material, contributors=[north, south])
    told = "".join(str(piece) for piece in contributors(merged))
    assert "1,200" in told
    assert "liver 1200" in told
    assert "Groups of &lt;south&gt; are under another key" in told
    assert "<south>" not in told


def test_copies_leaks_and_waiting_frames_are_counted(page):
    told = page.split("Copies, leaks and frames that wait")[1].split("</table>")[0]
    assert "nobody looked: echostill duplicates" in told
    assert "nobody looked: echostill leakcheck" in told
    assert "cosine of centred features above 0.98" in told
    counts = CopyCounts({"exact": 2, "near": 1}, {"busi": 4}, 7, 5)
    told = "".join(str(piece) for piece in copies(counts, 20))
    for words in (">3<", "exact 2, near 1", ">4<", "busi 4", ">7<", "25.0% of the 20 chosen"):
        assert words in told


def test_near_copies_by_brute_force(monkeypatch):
    monkeypatch.setattr("echostill.eval.reporting.copies._BLOCK", 7)
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 6)).astype(np.float32)
    features[5] = features[30] * 2 + 1e-3
    features[6] = features[7]
    cluster = np.zeros(40)
    cluster[30:] = 1  # rows 5 and 30 are compared only where clusters have no say
    for clusters in (np.zeros(40), cluster):
        expected = sum(
            any(
                features[a] @ features[b]
                > 0.98 * np.linalg.norm(features[a]) * np.linalg.norm(features[b])
                for b in range(40)
                if a != b and clusters[a] == clusters[b]
            )
            for a in range(40)
        )
        assert near_copies(features, clusters) == expected
    assert expected >= 2


def test_quality_flags_are_counted(material, page):
    told = "".join(str(piece) for piece in quality_flags(material))
    assert ">3<" in told.split("blank")[1].split("</tr>")[0]
    assert ">0<" in told.split("dark")[1].split("</tr>")[0]
    assert all(str(piece) in page for piece in quality_flags(material))
    bare = dataclasses.replace(material, images=material.images.drop_columns(QUALITY_ISSUES))
    assert quality_flags(bare) == []


def test_headline_says_what_the_numbers_say(material):
    results = Results(material.evaluation)
    assert results.candidates == [
        "teacher", "distilled student", "MIM-only student", "untrained student", "constant",
        "thumbnail",
    ]  # fmt: skip
    told = results.headline()
    assert told.startswith(
        "Of 8 planned comparisons on frozen features (corrected intervals in brackets): the "
        "distilled student is ahead of the untrained student on liver <b> (balanced accuracy +0."
    )
    row = next(r for r in results.comparisons if r["word"] == "ahead")
    assert f"[+{row['corrected_low']:.3f}, +{row['corrected_high']:.3f}]" in told
    assert "in the other" in told
    assert "On head the better of a pair is not ahead of a constant answer" in told
    assert "The distilled student is not ahead of the trivial candidates on head." in told
    assert "Where a model was trained once, this holds for these weights" in told
    words = {(r["task"], r["second"]): r["word"] for r in results.comparisons}
    assert {word for (task, _), word in words.items() if task == "head"} == {"not distinguished"}
    nothing = Results({**material.evaluation, "comparisons": []}).headline()
    assert nothing.startswith("No planned comparison could be made")
    alike = [{**row, "word": "not distinguished"} for row in results.comparisons]
    told = Results({**material.evaluation, "comparisons": alike}).headline()
    assert "frozen features: none shows a difference that can be told from chance." in told


def test_headline_names_what_limits_it(material):
    evaluation = json.loads(json.dumps(material.evaluation))
    row = next(r for r in evaluation["comparisons"] if r["word"] == "ahead")
    evaluation["comparisons"] = [
        {**row, "several_trainings": True},
        {**row, "several_trainings": True, "method": "fine-tuned"},
    ]
    evaluation["tasks"][1]["warnings"] = ["only 2 groups are tested"]
    evaluation["not_made"] = [["head", "teacher", "thumbnail", "k-NN"]]
    results = Results(evaluation)
    told = results.headline()
    assert "frozen" not in told
    assert "balanced accuracy by linear probe +" in told
    assert "balanced accuracy by fine-tuned +" in told
    assert "On head too few groups are tested for any difference to be told from chance." in told
    assert "1 more that were planned could not be made." in told
    assert "trained once" not in told
    page = outcome(dataclasses.replace(material, evaluation=evaluation), results).content.markup
    assert "<strong>Warning:</strong> only 2 groups are tested" in page
    assert "head: teacher − thumbnail, k-NN." in page


def test_half_trained_models_are_named(material):
    evaluation = json.loads(json.dumps(material.evaluation))
    own = {"method": "fine-tuned", "candidate": "teacher", "task": evaluation["tasks"][0]["name"]}
    for key in ("results", "estimates", "flags"):
        probed = [r for r in evaluation[key] if r["method"] == "linear probe"]
        evaluation[key] += [{**row, "method": "fine-tuned"} for row in probed]
    ending = {"trainings": 5, "converged": 3, "improving": 2, "unknown": 0}
    ending |= {"fewest_steps": 400, "most_steps": 2000}
    for improving, times in ((2, 1), (0, 0)):
        evaluation["fine_tunings"] = [{**own, **ending, "improving": improving}]
        results = Results(evaluation)
        assert results.headline().count("of half-trained models") == times
        page = outcome(dataclasses.replace(material, evaluation=evaluation), results).content.markup
        said = "2 of 5 fine-tunings ended while still improving"
        assert page.count(said) == 2 * times  # the row of the table, and a warning
        assert page.count("set finetune.steps higher") == times


def test_first_paragraph_is_the_headline(material, page):
    shown = re.search(r"<p[^>]*>(.*?)</p>", page.split("</h1>")[1], re.DOTALL)
    assert html.unescape(shown.group(1)) == Results(material.evaluation).headline()


def test_results_show_chance_trivial_candidates_and_flags(page):
    told = page.split('id="results"')[1].split("</section>")[0]
    assert told.lower().count("chance level") >= 6  # text, chart and table of each task, and all
    assert "beats" not in told
    table = told.split("<table")[1].split("</table>")[0]
    assert "constant" in table
    assert "thumbnail" in table
    assert "Recall benign" in table
    assert "not ahead of the thumbnail" in table.split("untrained student")[1].split("</tr>")[0]
    assert "Dice minus the constant mask" in told
    assert "5 groups per class" in told
    assert "Identical pictures: a.png, b.png" in told


def test_an_evaluation_of_an_earlier_form_is_refused(store):
    old = {"tasks": [], "seeds": [0], "results": [], "candidates": []}
    store.report("old").write("evaluation.json", json.dumps(old).encode())
    with pytest.raises(UsageError, match=r"another release .*`echostill evaluate --overwrite`"):
        report(ReportConfig(store=store.root, name="old"))


def test_galleries_are_what_they_claim(material):
    rows = Rows.of(material.coreset)
    found = {gallery.title: gallery.positions for gallery in galleries(rows, 3)}
    assert rows.selected[found["Chosen first"]].all()
    assert rows.dual_rank[found["Chosen first"][0]] == rows.dual_rank[rows.selected].min()
    inside, outside = found["Just in"], found["Just out"]
    assert (rows.cluster[inside] == rows.cluster[outside]).all()
    assert (rows.cluster_rank[inside] + 1 == rows.cluster_rank[outside]).all()
    assert not rows.selected[found["Rejected by distance"]].any()
    assert (rows.distance_place > rows.gradient_place)[found["Rejected by distance"]].all()
    assert (rows.distance_place < rows.gradient_place)[found["Rejected by gradient"]].all()
    clusters = clusters_of(rows)
    assert clusters.size.sum() == IMAGES
    assert clusters.selected.sum() == rows.selected.sum()


def test_gradients_follow_the_coreset_order(store, material):
    scores = store.open_scores().read(["image_id", "gradient"]).to_pylist()
    wanted = {row["image_id"]: row["gradient"] for row in scores}
    for place, image_id in enumerate(material.coreset["image_id"].to_pylist()):
        np.testing.assert_array_equal(material.gradient[place], np.float32(wanted[image_id]))


def test_labels_name_the_defaults_of_the_stages():
    score, select, distill = (
        result_relevant(config()) for config in (ScoreConfig, SelectConfig, DistillConfig)
    )
    for item in labelled_values(score, select, distill):
        assert "not recorded" not in item.value, item.default.name
        assert not item.differs, f"{item.default.name}: {item.value}, not {item.default.value}"
        assert item.default.reason.endswith(".")
    assert {item.label for item in DEFAULTS} == {"C", "I"}


def test_labels_show_the_value_used():
    select = result_relevant(SelectConfig(alpha=0.25))
    values = {item.default.name: item for item in labelled_values({}, select, {})}
    fusion = values["Fusion: weight of the distance rank"]
    assert (fusion.value, fusion.differs) == ("0.25", True)
    assert values["Teacher"].value == "not recorded"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("cannot read '/home/someone/pool/a.png'", "cannot read 'a.png'"),
        (r"C:\scans\pool\a.png", "a.png"),
        ("~/pool/a.png is empty", "a.png is empty"),
        ("liver/a.png is empty", "liver/a.png is empty"),
        ("s3://bucket/pool/a.png", "s3://bucket/pool/a.png"),
        ("1/2 of the rows, and/or more", "1/2 of the rows, and/or more"),
        ({"weights": ["/srv/w.pth", 1, None]}, {"weights": ["w.pth", 1, None]}),
    ],
)
def test_absolute_paths_are_shortened(given, kept):
    assert without_paths(given) == kept


def test_report_writes_a_manifest_and_says_where(store):
    said = str(report(ReportConfig(store=store.root, runs=("distilled-0",)), overwrite=True))
    manifest = json.loads(store.report("default").read("manifest.json"))
    assert said.endswith("report.html")
    assert ", 1 run: " in said
    files = [entry["file"] for entry in manifest["files"]]
    assert files == ["report.html", "evaluation.json", "recipe.yaml"]
    assert "pool" in manifest["inputs"]
    assert "run MIM-only-0" not in manifest["inputs"]


def test_plan_names_what_will_be_shown(store):
    told = plan_report(ReportConfig(store=store.root)).describe()
    assert "distilled-0" in told
    assert "untrained student" in told


def test_missing_inputs_are_named(store, tmp_path):
    with pytest.raises(UsageError, match=r"Run echostill evaluate first"):
        report(ReportConfig(store=str(tmp_path)))
    with pytest.raises(UsageError, match=r"Did you mean 'default'\?"):
        report(ReportConfig(store=store.root, name="defualt"))
    with pytest.raises(UsageError, match=r"Did you mean 'distilled-0'\?"):
        report(ReportConfig(store=store.root, runs=("distiled-0",)))
    with pytest.raises(UsageError, match="no coreset 'other'"):
        report(ReportConfig(store=store.root, coreset="other"))
