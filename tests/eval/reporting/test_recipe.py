import yaml

from echostill.eval.reporting.recipe import FILE, make_recipe
from echostill.platform.tables.store import Store

MADE = {
    "select": {"budget": 5, "seed": 0, "name": "default"},
    "ingest": {"source": ["a"], "seed": 0},
    "score": {"seed": 0, "teacher": {"model": "usfm"}, "student": "tinyusfm"},
    "duplicates": {"seed": 0},
}


def student(name, seed, **more):
    values = {"coreset": "default", "teacher": {"model": "usfm"}, "seed": seed, **more}
    return f"{name}-{seed}", {**values, "students": [{"name": name}], "seeds": [seed]}


def recipe(store, runs=(), configurations=MADE):
    return make_recipe(store, "default", configurations, runs, {"name": "default", "seed": 0})


def test_stages_follow_in_their_order_with_every_key(tmp_path):
    made = recipe(Store(str(tmp_path)), [student("a", 0), student("b", 0)])
    order = ["ingest", "score", "duplicates", "select", "distill", "report"]
    assert [line.split()[1] for line in made.commands] == order
    document = yaml.safe_load(made.files[FILE])
    assert document["store"] == "runs/reproduced"
    assert document["teacher"] == {"model": "usfm"}  # the same in all sections that have it
    assert document["select"] == {"budget": 5, "name": "default"}
    assert document["distill"]["students"] == [{"name": "a"}, {"name": "b"}]
    assert document["distill"]["seeds"] == [0]


def test_what_differs_between_stages_stands_in_their_sections(tmp_path):
    made = recipe(Store(str(tmp_path)), configurations={**MADE, "score": {"seed": 3}})
    document = yaml.safe_load(made.files[FILE])
    assert "seed" not in document
    assert (document["score"]["seed"], document["select"]["seed"]) == (3, 0)


def test_runs_of_unlike_training_have_files_of_their_own(tmp_path):
    runs = [
        *(student("a", seed) for seed in (0, 1)),
        student("a", 2, training={"steps": 9}),
        student("b", 2, training={"steps": 9}),
    ]
    made = recipe(Store(str(tmp_path)), runs)
    assert list(made.files) == [FILE, "recipe-distill-2.yaml"]
    assert yaml.safe_load(made.files[FILE])["distill"]["seeds"] == [0, 1]
    second = yaml.safe_load(made.files["recipe-distill-2.yaml"])
    assert [s["name"] for s in second["distill"]["students"]] == ["a", "b"]
    assert sum(line.startswith("echostill distill") for line in made.commands) == 2


def test_a_grid_with_holes_is_not_filled(tmp_path):
    runs = [student("a", 0), student("a", 1), student("b", 0)]
    made = recipe(Store(str(tmp_path)), runs)
    assert len(made.files) == 3


def test_what_no_stage_writes_is_copied_before_it_is_read(tmp_path):
    store = Store(str(tmp_path))
    store.pins().write("manifest.json", b"{}")
    store.duplicates().write("manifest.json", b"{}")
    lines = [line.split()[:2] for line in recipe(store).commands]
    assert lines.index(["cp", "-R"]) == lines.index(["echostill", "select"]) - 1
    assert sum(line[0] == "cp" for line in lines) == 1


def test_hidden_names_are_told(tmp_path):
    hidden = {**MADE, "ingest": {"source": ["5b1d0c3e9a7f42168c0d5e6f7a8b9c0d"]}}
    assert "key_file" in recipe(Store(str(tmp_path)), configurations=hidden).notes[0]
    assert recipe(Store(str(tmp_path))).notes == ()
