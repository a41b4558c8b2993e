"""The distillation run without Ray: seeded, resumable, and the teacher stays outside."""

import copy
import io
import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from echostill.distill import DistillConfig, distill, distillation
from echostill.distill.distillation import DistillationJob, plan_distill, weight_spread
from echostill.distill.groups import run_groups
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.distill.settings import StudentRun, StudentSettings
from echostill.platform.config import TeacherSettings, validate
from echostill.platform.errors import UsageError
from echostill.platform.masking.masks import MaskSettings
from echostill.platform.masking.mim import DecoderSettings
from echostill.platform.models import create_encoder, load_weights, save_weights
from echostill.platform.models.weights import Weights, find_weights
from echostill.platform.tables.schemas import CORESET_SCHEMA, POOL_SCHEMA
from echostill.platform.tables.store import Store, selected_ids
from echostill.platform.tables.table import write_table
from echostill.platform.training.batches import make_batch, whole_draw
from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.loop import TrainingSettings, TrainingState, train
from echostill.platform.training.run import PlannedRun
from echostill.platform.training.staging import StagedImages, staged_side

pytestmark = pytest.mark.slow

ALONE = TrainingWorker()
SETTINGS = TrainingSettings(
    steps=6, batch_size=4, learning_rate=0.02, checkpoints=3, log_every=1, warmup=0.2
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(1)
    encoder = create_encoder("usfm-micro")
    with torch.no_grad():  # an untrained teacher sees little difference between images
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_weights(encoder, str(path), {})
    return find_weights("usfm-micro", str(path))


@pytest.fixture(scope="module")
def images():
    side = staged_side(128)
    pixels = np.random.default_rng(0).integers(0, 255, (10, 1, side, side), dtype=np.uint8)
    return StagedImages(pixels, [f"{row:032x}" for row in range(10)], ["liver"] * 10)


def job(teacher, seed=0, settings=SETTINGS, others=(), initial=(), **objective):
    """A job of one student, or of several with the objectives of ``others`` beside it.

    Its images weigh by consistency, if nothing else is said: that has most to go wrong.
    """
    own = ObjectiveSettings(**{"preset": "tinyusfm", **objective})
    runs = [
        StudentRun(f"student{place}", f"student{place}", "tinyusfm-micro", None, chosen, seed)
        for place, chosen in enumerate([own, *others])
    ]
    return DistillationJob(
        store="unused",
        runs=tuple(runs),
        teacher=teacher,
        image_ids=(),
        settings=settings,
        decoder=DecoderSettings(),
        masks=MaskSettings(),
        seed=seed,
        initial=initial,
    )


def run(task, images, state=None, kept=None, settings=SETTINGS):
    state = state or TrainingState()

    def on_checkpoint(current):
        if kept is not None:
            buffer = io.BytesIO()
            torch.save({"task": task.state_dict(), "optimiser": current.optimiser}, buffer)
            kept[current.step] = (buffer, copy.deepcopy(current.history))

    train(task, task, images, settings, task.seed, state, ALONE, on_checkpoint)
    return state.history


def equal(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def without(row, names):
    return {name: value for name, value in row.items() if name not in names}


def student(task):
    return task.objective.student.state_dict()


def test_a_run_repeats_itself_and_a_seed_changes_it(teacher, images):
    first = job(teacher).task()
    history = run(first, images)
    second = job(teacher).task()
    assert run(second, images) == history
    assert equal(first.state_dict(), second.state_dict())
    assert history[-1]["loss"] != history[0]["loss"]
    other = job(teacher, seed=1).task()
    assert not equal(student(job(teacher).task()), student(other))
    assert run(other, images)[0]["loss"] != history[0]["loss"]
    assert weight_spread(history) == pytest.approx(np.mean([row["weight_std"] for row in history]))


@pytest.mark.parametrize("level", ["sample", "token"])
def test_a_run_cut_at_a_checkpoint_ends_as_the_whole_one(teacher, images, level):
    kept = {}
    whole = job(teacher, level=level).task()
    history = run(whole, images, kept=kept)
    assert sorted(kept) == [2, 4, 6]
    buffer, earlier = kept[4]
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    cut = job(teacher, level=level).task()
    cut.load_state_dict(saved["task"])
    again = run(cut, images, TrainingState(4, saved["optimiser"], earlier))
    totals = {"weight_by_organ/liver"}  # sums over the run, which this state was not given
    assert [without(row, totals) for row in again] == [without(row, totals) for row in history]
    assert equal(whole.state_dict(), cut.state_dict())  # the running means among them


def test_the_teacher_is_not_trained_not_saved_and_sees_no_dropout(teacher, images):
    task = job(teacher).task()
    before = copy.deepcopy(task.objective.teacher.state_dict())
    size = sum(p.numel() for p in task.objective.teacher.parameters())
    run(task, images)
    assert equal(before, task.objective.teacher.state_dict())
    assert not task.objective.teacher.training
    assert not any(p.requires_grad for p in task.objective.teacher.parameters())
    names = list(task.state_dict())
    assert not [name for name in names if "teacher" in name]
    assert sum(p.numel() for p in task.parameters()) < size
    tops = {".".join(name.split(".")[:3]) for name in names}
    assert tops == {
        "objectives.0.student",
        "objectives.0.adapters",
        "objectives.0.mean_feature",
        "objectives.0.token_moments",
    }


def test_students_of_one_seed_start_alike_whatever_they_follow(teacher, images):
    """What a teacher changes must be its signal, not other weights or other images."""
    followers = [job(teacher), job(teacher, preset="fixed-weight"), job(None, preset="mim-only")]
    tasks = [each.task() for each in followers]
    for task in tasks[1:]:
        assert equal(student(tasks[0]), student(task))
    batches = [make_batch(images, SETTINGS, 0, 128, 3, ALONE) for _ in tasks]
    parts = [task(batch)[1] for task, batch in zip(tasks, batches, strict=True)]
    for part in parts[1:]:
        assert torch.equal(part["reconstruction"], parts[0]["reconstruction"])
    assert "distillation" not in parts[2]
    assert weight_spread([{"loss": 1.0}]) is None


def test_following_with_no_weight_is_not_following(teacher, images):
    alone, weightless = job(None, preset="mim-only").task(), job(teacher, beta=0.0).task()
    run(alone, images)
    run(weightless, images)
    assert equal(student(alone), student(weightless))
    following = job(teacher).task()
    run(following, images)
    assert not equal(student(alone), student(following))


SHARING = (
    ObjectiveSettings(preset="fixed-weight", teacher_layers=(1, 4, 5)),
    ObjectiveSettings(level="token", attention_weight=0.5, relation_weight=0.5),
)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_students_on_one_teacher_pass_end_as_those_trained_alone(teacher, images, micro_batch):
    """Not one bit differs: neither weights nor what is logged."""
    settings = SETTINGS.model_copy(update={"micro_batch": micro_batch})
    together = job(teacher, settings=settings, others=SHARING).task()
    history = run(together, images, settings=settings)
    members = [PlannedRun(f"student{place}/", None, None, None) for place in range(3)]
    for place, objective in enumerate([ObjectiveSettings(preset="tinyusfm"), *SHARING]):
        alone = job(teacher, settings=settings, **objective.model_dump(exclude={"masks"})).task()
        assert run(alone, images, settings=settings) == members[place].rows(history)
        assert equal(alone.objective.state_dict(), together.each(place).state_dict())


def test_one_pass_of_the_teacher_serves_all(teacher, images):
    together = job(teacher, others=SHARING).task()
    calls = []
    handle = together.objective.teacher.register_forward_hook(lambda *_: calls.append(1))
    run(together, images)
    handle.remove()
    assert len(calls) == SETTINGS.steps


@pytest.mark.parametrize(
    "objective",
    [{}, {"level": "token", "weighting": "softmax"}, {"weighting": "batch-normalised"}],
)
def test_how_a_batch_is_cut_does_not_matter(teacher, images, objective):
    whole = run(job(teacher, **objective).task(), images)
    settings = SETTINGS.model_copy(update={"micro_batch": 1})
    parted = run(job(teacher, settings=settings, **objective).task(), images, settings=settings)
    for one, other in zip(whole, parted, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_the_weight_is_told_by_organ_and_device_and_against_the_error(teacher, images):
    placed = StagedImages(
        images.pixels, images.image_ids, ["liver"] * 4 + ["lung"] * 6, ["A", ""] * 5
    )
    task = job(teacher).task()
    settings = SETTINGS.model_copy(update={"log_every": 1})
    history = run(task, placed, settings=settings)
    last = history[-1]
    assert {name for name in last if name.startswith("weight_by")} == {
        "weight_by_organ/liver",
        "weight_by_organ/lung",
        "weight_by_device/A",
        "weight_by_device/not stated",
    }
    everything = np.mean([row["weight_mean"] for row in history])
    counts = np.bincount(
        np.concatenate(
            [whole_draw(placed, settings, 0, step).rows < 4 for step in range(6)]
        ).astype(int)
    )
    told = counts[1] * last["weight_by_organ/liver"] + counts[0] * last["weight_by_organ/lung"]
    assert told / counts.sum() == pytest.approx(everything, rel=1e-6)
    batch = make_batch(placed, settings, 0, 128, 0, ALONE)
    _, parts = job(teacher).task()(batch)
    expected = np.corrcoef(parts["weight"].numpy(), parts["reconstruction_error"].numpy())[0, 1]
    assert history[0]["weight_error_correlation"] == pytest.approx(expected, rel=1e-5)


def test_starting_from_other_weights_is_not_resuming(teacher, images, tmp_path):
    first = job(teacher).task()
    run(first, images)
    path = str(tmp_path / "student.safetensors")
    save_weights(first.objective.student.encoder, path, {})
    start = find_weights("tinyusfm-micro", path)
    second = job(teacher, initial=(start,)).task()
    assert equal(
        first.objective.student.encoder.state_dict(), second.objective.student.encoder.state_dict()
    )
    assert all(p.requires_grad for p in second.objective.student.encoder.parameters())
    assert len(run(second, images)) == len(run(job(teacher).task(), images))  # from step 0


def test_groups_are_the_students_that_see_the_same_views(tmp_path):
    store = Store(str(tmp_path / "store"))
    objectives = {
        "a": ObjectiveSettings(),
        "b": ObjectiveSettings(preset="fixed-weight"),
        "c": ObjectiveSettings(preset="mim-only"),
        "d": ObjectiveSettings(preset="mae-lite"),
        "e": ObjectiveSettings(preset="fixed-weight", teacher_sees="image"),
    }
    runs = [
        StudentRun(f"{name}-{seed}", name, "tinyusfm-micro", None, objective, seed)
        for name, objective in objectives.items()
        for seed in (0, 1)
    ]

    def names(**options):
        return [[run.name for run in group] for group in run_groups(runs, store, **options)]

    alone = [[f"{name}-{seed}"] for name in "cde" for seed in (0, 1)]
    assert names() == [["a-0", "b-0"], ["a-1", "b-1"], *alone]
    assert names(share=False) == [[run.name] for run in runs]
    # A group that was begun goes on, though one of its members is finished.
    for name in ("a-1", "b-1"):
        store.run(name).write("group.json", b'["b-1", "a-1"]')
    store.run("b-1").write("manifest.json", b"{}")
    assert names()[0] == ["b-1", "a-1"]
    # Alone, what is finished is not trained again.
    store.run("b-0").write("manifest.json", b"{}")
    assert ["a-0"] in names()
    assert ["b-0"] in names()


def test_students_of_other_input_or_patches_are_not_grouped(tmp_path):
    store = Store(str(tmp_path / "store"))
    runs = [
        StudentRun(name, name, model, None, ObjectiveSettings(), 0, image_size=size)
        for name, model, size in (
            ("a", "tinyusfm-micro", 96),
            ("b", "timm:test_vit", 96),  # 16 pixels a patch, as the others
            ("c", "tinyusfm-micro", None),
            ("d", "timm:test_convnext", 96),  # 32
        )
    ]
    names = [[run.name for run in group] for group in run_groups(runs, store)]
    assert names == [["a", "b"], ["c"], ["d"]]


def test_the_exported_student_is_the_encoder_alone(teacher, images, tmp_path):
    task = job(teacher).task()
    run(task, images)
    trained = task.objective.student.encoder
    save_weights(trained, str(tmp_path / "student.safetensors"), {"objective": "tinyusfm"})
    loaded = create_encoder("tinyusfm-micro")
    load_weights(loaded, str(tmp_path / "student.safetensors"))
    assert equal(loaded.state_dict(), trained.state_dict())
    assert not [name for name in loaded.state_dict() if "adapter" in name or "decoder" in name]
    assert not equal(
        loaded.state_dict(), job(teacher).task().objective.student.encoder.state_dict()
    )


def filled(tmp_path, rows=6):
    """A store with a pool and a coreset of which every second row is selected."""
    store = Store(str(tmp_path / "store"))
    ids = [f"{row:032x}" for row in reversed(range(rows))]
    pool = pa.Table.from_pylist([{"image_id": i} for i in ids], schema=POOL_SCHEMA)
    chosen = [{"image_id": i, "selected": int(i, 16) % 2 == 0} for i in ids]
    coreset = pa.Table.from_pylist(chosen, schema=CORESET_SCHEMA)
    write_table(store.pool(), pool, stage="ingest", fingerprint={})
    write_table(store.coreset("default"), coreset, stage="select", fingerprint={}, rows_per_part=2)
    return store


def config(store, **settings):
    values = {
        "store": store.root,
        "teacher": TeacherSettings(model="usfm-micro"),
        "student": "tinyusfm-micro",
        "training": SETTINGS,
        "progress": False,
        **settings,
    }
    return DistillConfig(**values)


def test_what_is_missing_is_said_before_any_work(tmp_path):
    store = filled(tmp_path)
    with pytest.raises(UsageError, match="no teacher: name its weights"):
        distill(config(store))
    absent = TeacherSettings(model="usfm-micro", weights=str(tmp_path / "gone.safetensors"))
    with pytest.raises(UsageError, match=r"gone\.safetensors"):
        distill(config(store, teacher=absent))
    with pytest.raises(UsageError, match="Did you mean 'default'"):
        distill(config(store, coreset="defualt"))
    with pytest.raises(UsageError, match="run `echostill select` first"):
        distill(config(Store(str(tmp_path / "empty"))))
    assert not store.storage.exists("runs")


def test_a_coreset_of_another_pool_is_refused(tmp_path):
    """By what its manifest says it was selected from; one that says nothing is taken as it is."""
    store = filled(tmp_path)
    alone = (StudentSettings(objective=ObjectiveSettings(preset="mim-only")),)
    coreset, pool = store.open_coreset("default"), store.open_pool()
    assert "to do" in plan_distill(config(store, students=alone)).describe()
    for made, refused in (
        ({"pool": pool.digest, "scores": "of scores that are gone"}, False),
        ({"pool": "of another pool"}, True),
    ):
        manifest = {**coreset.manifest, "fingerprint": {"inputs": made}}
        coreset.storage.write("manifest.json", json.dumps(manifest).encode())
        if not refused:
            assert "to do" in plan_distill(config(store, students=alone)).describe()
            continue
        for call in (plan_distill, distill):
            with pytest.raises(UsageError, match=r"another pool \(6 rows now\).*echostill select"):
                call(config(store, students=alone))
    about = {"about": {"inputs.pool": "9 images"}}
    coreset.storage.write("fingerprint.json", json.dumps(about).encode())
    with pytest.raises(UsageError, match=r"another pool \(9 images then, 6 now\)"):
        plan_distill(config(store, students=alone))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"student": "timm:pit_ti_224"}, "'timm:pit_ti_224' ends in no grid"),
        ({"student": "timm:test_resnet", "student_image_size": 70}, "no whole patches"),
        ({"student": "timm:test_vit", "student_image_size": 65}, "cannot be an encoder for images"),
        (
            {"students": (StudentSettings(objective=ObjectiveSettings(attention_weight=1.0)),),
             "student": "timm:test_convnext", "student_image_size": 128},
            "match tokens instead",
        ),
        (
            {"students": (StudentSettings(objective=ObjectiveSettings(preset="mae-lite")),),
             "student_image_size": 64},
            "it cannot be resampled",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_by_the_plan_and_the_run(
    teacher, tmp_path, monkeypatch, values, words
):
    store = filled(tmp_path)
    named = TeacherSettings(model="usfm-micro", weights=teacher.path)
    refused = config(store, teacher=named, **values)
    monkeypatch.setattr(distillation, "check_origin", lambda *_: None)  # it has no scores
    monkeypatch.setattr(distillation, "_at_once", lambda *_, **__: pytest.fail("Ray was started"))
    said = set()
    for call in (plan_distill, distill):
        with pytest.raises(UsageError, match=words) as caught:
            call(refused)
        said.add(str(caught.value))
    assert len(said) == 1
    assert not store.storage.exists("runs")


def test_the_plan_lists_every_run(teacher, tmp_path):
    store = filled(tmp_path)
    alone = StudentSettings(name="alone", objective=ObjectiveSettings(preset="mim-only"))
    both = (StudentSettings(), alone)
    named = TeacherSettings(model="usfm-micro", weights=teacher.path)
    said = plan_distill(config(store, students=both, seeds=(3, 4), teacher=named)).describe()
    for line in ("3 images of 6", "6 x 4 images = 8.0 epochs of 3", "distilled-4", "alone-3"):
        assert line in said
    assert teacher.path in said
    assert said.count("to do") == 4
    assert "teacher" not in plan_distill(config(store, students=(alone,))).describe()
    assert selected_ids(store.open_coreset("default")) == tuple(f"{k:032x}" for k in (0, 2, 4))


def test_the_teacher_is_loaded_by_those_who_train_alone(teacher, images, tmp_path, monkeypatch):
    """Neither the checks before a run nor the export after it need its weights."""
    store = filled(tmp_path)
    monkeypatch.setattr(Weights, "load", lambda *_, **__: pytest.fail("it was loaded"))
    monkeypatch.setattr(DistillationJob, "images", lambda *_: images)
    named = TeacherSettings(model="usfm-micro", weights=teacher.path)
    assert "to do" in plan_distill(config(store, teacher=named)).describe()
    trained = job(teacher)
    distillation._export(trained, 0, trained.task_to_export(), tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size
    with pytest.raises(pytest.fail.Exception, match="it was loaded"):
        trained.task()


@pytest.mark.parametrize(
    "values",
    [
        {"seeds": [0, 1, 0]},
        {"students": [{"name": "a"}, {"name": "a", "objective": {"preset": "mim-only"}}]},
        {"students": [{"name": "a"}, {"name": "a"}], "seeds": [1, 2]},
    ],
)
def test_two_runs_of_one_name_are_refused(values):
    """They would be trained side by side into one folder."""
    with pytest.raises(UsageError, match="more than once"):
        validate(DistillConfig, values)


def test_no_student_and_odd_names_are_refused():
    for values in ({"students": []}, {"students": [{"name": "../else"}]}):
        with pytest.raises(UsageError, match="students"):
            validate(DistillConfig, values)
