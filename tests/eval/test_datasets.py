import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from echostill.eval.datasets import TaskSettings, load_dataset
from echostill.eval.remarks import find_remarks, in_words, joined_groups
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import decode_image


def write(folder, rows, columns=None):
    columns = columns or list(rows[0])
    with open(folder / "task.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def read(folder):
    with open(folder / "task.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def picture(folder, name, size=(30, 20), value=0):
    generator = np.random.default_rng(value)
    array = generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(folder / name)


def classification(folder, **changes):
    rows = []
    for index, label in enumerate("aabbcc"):
        picture(folder, f"images/{index}.png", value=index)
        row = {"file": f"images/{index}.png", "label": label, "group": f"0{index}"}
        rows.append(row)
    write(folder, rows)
    values = {"name": "toy", "kind": "classification", "manifest": str(folder / "task.csv")}
    return TaskSettings(**(values | changes))


def segmentation(folder, raw, **changes):
    rows = []
    for index, values in enumerate(raw):
        picture(folder, f"{index}.png", size=(8, 8), value=index)
        Image.fromarray(np.asarray(values, dtype=np.uint8)).save(folder / f"{index}_mask.png")
        row = {"file": f"{index}.png", "mask": f"{index}_mask.png", "label": "xy"[index % 2]}
        rows.append(row | {"group": f"g{index}"})
    write(folder, rows)
    values = {"name": "toy", "kind": "segmentation", "manifest": str(folder / "task.csv")}
    return TaskSettings(**(values | changes))


def halves(value):
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:4] = value
    return mask


def test_classification(tmp_path):
    data = load_dataset(classification(tmp_path), 16)
    assert data.pixels.shape == (6, 3, 16, 16)
    assert data.pixels.dtype == np.uint8
    assert data.class_names == ("a", "b", "c")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.groups.tolist() == ["00", "01", "02", "03", "04", "05"]
    assert data.masks is None
    assert data.official_split is None
    assert data.notes == ()
    assert data.image_size == 16
    image = Image.open(tmp_path / "images/2.png").resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(data.pixels[2].transpose(1, 2, 0), np.asarray(image))


def test_classes_are_kept_in_the_order_given_or_left_out(tmp_path):
    data = load_dataset(classification(tmp_path, classes=("c", "a")), 8)
    assert data.class_names == ("c", "a")
    assert data.labels is not None
    assert data.labels.tolist() == [1, 1, 0, 0]
    assert data.notes == ("2 rows left out by their label",)
    assert load_dataset(classification(tmp_path, exclude_labels=("b",)), 8).class_names == (
        "a",
        "c",
    )


def test_binary_masks_and_their_threshold(tmp_path):
    raw = [halves(255), halves(128), halves(127)]
    data = load_dataset(segmentation(tmp_path, raw), 8)
    assert data.class_names == ("foreground",)
    assert data.masks is not None
    assert data.masks.dtype == np.uint8
    assert [int(mask.sum()) for mask in data.masks] == [32, 32, 0]


def test_masks_by_raw_grey_values(tmp_path):
    both = halves(2)
    both[6:] = 1
    numbered = load_dataset(segmentation(tmp_path, [both, halves(1)], mask_classes=2), 8)
    assert numbered.class_names == ("class 1", "class 2")
    assert numbered.masks is not None
    assert np.array_equal(numbered.masks[0], both)
    mapped = load_dataset(segmentation(tmp_path, [both, halves(1)], mask_classes={"mass": 2}), 8)
    assert mapped.class_names == ("mass",)
    assert mapped.masks is not None
    assert np.array_equal(mapped.masks[0], both == 2)
    with pytest.raises(UsageError, match="grey value 3"):
        load_dataset(segmentation(tmp_path, [halves(3), both], mask_classes=2), 8)


def test_masks_are_resized_without_new_values(tmp_path):
    data = load_dataset(segmentation(tmp_path, [halves(2), halves(2)], mask_classes=2), 13)
    assert data.masks is not None
    assert set(np.unique(data.masks)) == {0, 2}


def test_segmentation_rows_can_be_chosen_by_label(tmp_path):
    raw = [halves(255)] * 4
    assert len(load_dataset(segmentation(tmp_path, raw, classes=("x",)), 8)) == 2


def test_masks_without_foreground_name_their_values(tmp_path):
    with pytest.raises(UsageError, match="grey values are 0, 1"):
        load_dataset(segmentation(tmp_path, [halves(1), halves(1)]), 8)


def test_a_mask_of_another_size_is_refused(tmp_path):
    task = segmentation(tmp_path, [halves(255), np.zeros((4, 8))])
    with pytest.raises(UsageError, match=r"'1_mask.png' is 8 x 4 pixels, but its image 8 x 8"):
        load_dataset(task, 8)


def test_rows_without_a_mask_are_counted(tmp_path):
    task = segmentation(tmp_path, [halves(255)] * 3)
    rows = read(tmp_path)
    rows[1]["mask"] = ""
    write(tmp_path, rows)
    data = load_dataset(task, 8)
    assert len(data) == 2
    assert data.notes == ("1 rows left out: no mask",)


def test_official_split_and_a_wrong_value(tmp_path):
    task = classification(tmp_path)
    rows = read(tmp_path)
    for index, row in enumerate(rows):
        row["split"] = "train" if index % 2 else "test"
    write(tmp_path, rows)
    data = load_dataset(task, 8)
    assert data.official_split is not None
    assert data.official_split.tolist() == ["test", "train"] * 3
    rows[0]["split"] = "tets"
    write(tmp_path, rows)
    with pytest.raises(UsageError, match="Did you mean 'test'"):
        load_dataset(task, 8)


def test_identical_images_in_two_groups_are_noted(tmp_path):
    task = classification(tmp_path)
    (tmp_path / "images/5.png").write_bytes((tmp_path / "images/0.png").read_bytes())
    data = load_dataset(task, 8)
    assert data.notes == (
        "2 images are identical to one of another group; such groups are kept together",
        "identical pictures with different labels: images/0.png (a), images/5.png (c)",
    )
    assert data.groups.tolist() == ["00", "01", "02", "03", "04", "00"]
    (remark,) = data.remarks
    assert remark.as_dict() == {
        "kind": "identical",
        "files": ["images/0.png", "images/5.png"],
        "groups": ["00", "05"],
        "labels": ["a", "c"],
        "contradicts": True,
    }


def test_one_group_with_two_labels_of_one_picture_is_noted(tmp_path):
    task = classification(tmp_path)
    rows = read(tmp_path)
    rows[4]["group"] = rows[0]["group"]
    write(tmp_path, [*rows, {**rows[4], "file": "images/6.png", "group": "06"}])
    picture(tmp_path, "images/6.png", value=6)
    (tmp_path / "images/4.png").write_bytes((tmp_path / "images/0.png").read_bytes())
    data = load_dataset(task, 8)
    assert data.notes == (
        "identical pictures with different labels: images/0.png (a), images/4.png (c)",
    )
    assert data.groups.tolist() == ["00", "01", "02", "03", "00", "05", "06"]


def test_chains_of_identical_images_are_one_group():
    pixels = np.array([1, 2, 1, 2, 3, 0], dtype=np.uint8)[:, None, None, None] * np.full(
        (3, 8, 8), 50, dtype=np.uint8
    )
    groups = ["a", "a", "b", "c", "d", "e"]
    remarks = find_remarks(pixels, list("uvwxyz"), groups, ["l"] * 6)
    assert [(r.kind, r.files, r.contradicts) for r in remarks] == [
        ("identical", ("u", "w"), False),
        ("identical", ("v", "x"), False),
        ("black", ("z",), False),
    ]
    assert joined_groups(groups, remarks) == ["a", "a", "a", "a", "d", "e"]
    assert in_words(remarks, joined=False)[-1] == "1 black frame(s): z"


def test_black_frames_are_named_and_join_no_groups(tmp_path):
    """There may be one in every group, which would make one group of them all."""
    task = classification(tmp_path)
    rows = read(tmp_path)
    for number, row in enumerate(list(rows)):
        rows.append({**row, "file": f"images/black{number}.png"})
        Image.new("L", (30, 20)).save(tmp_path / f"images/black{number}.png")
    write(tmp_path, rows)
    data = load_dataset(task, 8)
    assert data.groups.tolist() == [row["group"] for row in rows]
    labelled, black = data.notes
    assert labelled.startswith("identical pictures with different labels: images/black0.png (")
    assert black.startswith("6 black frame(s): images/black0.png")


def test_a_class_that_has_one_group_left_says_that_groups_were_joined(tmp_path):
    task = classification(tmp_path)
    rows = read(tmp_path)
    of = {label: [row for row in rows if row["label"] == label] for label in "abc"}
    first, *others = of["a"]
    for row in others:
        (tmp_path / row["file"]).write_bytes((tmp_path / first["file"]).read_bytes())
    with pytest.raises(
        UsageError, match=r"class 'a' has 1 group.s., counting those that have an identical picture"
    ):
        load_dataset(task, 8)


def test_one_picture_on_both_sides_of_an_official_split_is_named(tmp_path):
    task = classification(tmp_path)
    rows = read(tmp_path)
    for index, row in enumerate(rows):
        row["split"] = "train" if index % 2 else "test"
    write(tmp_path, rows)
    for copy in (2, 3):  # of one side, and of the other
        data = (tmp_path / "images/0.png").read_bytes()
        (tmp_path / f"images/{copy}.png").write_bytes(data)
    data = load_dataset(task, 8)
    assert data.notes[:2] == (
        "3 images are identical to one of another group",
        "identical pictures on both sides of the official split: "
        "images/0.png, images/2.png, images/3.png",
    )
    (tmp_path / "images/3.png").write_bytes((tmp_path / "images/5.png").read_bytes())
    said = " ".join(load_dataset(task, 8).notes)
    assert "both sides" not in said


def test_parquet_is_read_as_csv_is(tmp_path):
    task = classification(tmp_path)
    rows = read(tmp_path)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "task.parquet")
    other = task.model_copy(update={"manifest": str(tmp_path / "task.parquet")})
    first, second = load_dataset(task, 8), load_dataset(other, 8)
    assert first.files == second.files
    assert np.array_equal(first.pixels, second.pixels)
    (tmp_path / "task.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="is not Parquet"):
        load_dataset(other, 8)


@pytest.mark.parametrize("file", ["images/0.png", "./images/0.png"])
def test_an_image_that_is_listed_twice_is_refused(tmp_path, file):
    task = classification(tmp_path)
    write(tmp_path, [*read(tmp_path), {"file": file, "label": "b", "group": "09"}])
    with pytest.raises(UsageError, match=r"row 8 names .* again, which row 2 has"):
        load_dataset(task, 8)


def test_spaces_and_missing_values_make_no_classes_and_groups(tmp_path):
    task = classification(tmp_path)
    rows = read(tmp_path)
    rows[1] |= {"label": " a ", "group": "00 "}
    rows[0]["group"] = "00"
    picture(tmp_path, "images/6.png", value=6)
    write(tmp_path, [*rows, {"file": "images/6.png", "label": "a", "group": "06"}])
    data = load_dataset(task, 8)
    assert data.class_names == ("a", "b", "c")
    assert data.groups.tolist()[:2] == ["00", "00"]
    for column, value, message in (
        ("label", "NaN", r"row 4 has the label 'NaN', as programs write for a missing value"),
        ("label", "n/a", r"row 4 has the label 'n/a', as programs write for a missing value"),
        ("group", "nan", r"row 4 has no 'group'"),
        ("label", "A", r"labels 'A' and 'a' differ only in upper and lower case"),
    ):
        write(tmp_path, [*rows[:2], {**rows[2], column: value}, *rows[3:]])
        with pytest.raises(UsageError, match=message):
            load_dataset(task, 8)
    rows[1]["group"] = "01"
    named = task.model_copy(update={"exclude_labels": ("nan",)})
    write(tmp_path, [{**row, "label": "nan"} if k == 5 else row for k, row in enumerate(rows)])
    with pytest.raises(UsageError, match="class 'c' has 1 group"):  # and not the label
        load_dataset(named, 8)
    table = pa.table({name: [row[name] for row in rows] for name in ("file", "group")})
    numbers = pa.array([0.0, 0.0, 1.0, 1.0, 1.0, float("nan")])
    pq.write_table(table.append_column("label", numbers), tmp_path / "task.parquet")
    other = task.model_copy(update={"manifest": str(tmp_path / "task.parquet")})
    data = load_dataset(other, 8)
    assert (data.class_names, data.notes) == (("0.0", "1.0"), ("1 rows left out: no label",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "It has: no column at all"),
        ("file;label;group\n", "Separate them by commas, not by ';'"),
        ("file,label,group\n", "no row of .* is left with a label"),
        ("file,label,group\n" + '"' + "x" * 140_000, "is not CSV after line 1: field larger"),
        ("file,label,group\ny.png,caf\xe9,g\n", "is not UTF-8 text: save it as CSV UTF-8"),
    ],
)
def test_odd_texts_are_refused(tmp_path, text, message):
    task = classification(tmp_path)
    (tmp_path / "task.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message):
        load_dataset(task, 8)


def test_deep_pictures_are_scaled_as_in_a_pool(tmp_path):
    task = classification(tmp_path)
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 63  # 12 bits, as scanners write them
    Image.fromarray(deep).save(tmp_path / "images/3.png")
    pixels = load_dataset(task, 8).pixels[3]
    wanted = decode_image((tmp_path / "images/3.png").read_bytes())
    assert np.array_equal(pixels, np.stack([wanted] * 3))
    assert len(np.unique(pixels)) > 50  # and not white from the 256th level on


def test_coloured_masks_are_refused(tmp_path):
    task = segmentation(tmp_path, [halves(255)] * 4)
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    red[:4] = (255, 0, 0)
    Image.fromarray(red).save(tmp_path / "2_mask.png")
    with pytest.raises(UsageError, match=r"mask .2_mask.png. is coloured"):
        load_dataset(task, 8)
    Image.fromarray(np.repeat(halves(255)[..., None], 3, axis=2)).save(tmp_path / "2_mask.png")
    assert load_dataset(task, 8).masks[2].any()


def test_missing_things_name_the_nearest(tmp_path):
    task = classification(tmp_path)
    with pytest.raises(UsageError, match=r"Did you mean 'task.csv'"):
        load_dataset(task.model_copy(update={"manifest": str(tmp_path / "tsk.csv")}), 8)
    with pytest.raises(UsageError, match=r"no column 'patient'.*It has: file, label, group"):
        load_dataset(task.model_copy(update={"group_column": "patient"}), 8)
    with pytest.raises(UsageError, match=r"no column 'groups'. Did you mean 'group'"):
        load_dataset(task.model_copy(update={"group_column": "groups"}), 8)
    with pytest.raises(UsageError, match="no column 'mask'"):
        load_dataset(task.model_copy(update={"kind": "segmentation"}), 8)
    with pytest.raises(UsageError, match=r"no row of .* has the label 'd'"):
        load_dataset(task.model_copy(update={"exclude_labels": ("d",)}), 8)
    (tmp_path / "images/3.png").rename(tmp_path / "images/33.png")
    with pytest.raises(UsageError, match=r"'images/3.png'.*missing. Did you mean '33.png'"):
        load_dataset(task, 8)


def test_an_unreadable_image_is_named(tmp_path):
    task = classification(tmp_path)
    (tmp_path / "images/4.png").write_bytes(b"not an image")
    with pytest.raises(UsageError, match=r"'images/4.png' is not a readable image"):
        load_dataset(task, 8)


def test_a_class_with_too_few_groups_is_refused(tmp_path):
    task = classification(tmp_path, min_groups=3)
    with pytest.raises(UsageError, match=r"class 'a' has 2 group\(s\); at least 3"):
        load_dataset(task, 8)
    with pytest.raises(UsageError, match="only the class 'a'"):
        load_dataset(classification(tmp_path, classes=("a",)), 8)


def test_settings_are_checked():
    values = {"name": "x", "kind": "segmentation", "manifest": "m.csv"}
    with pytest.raises(ValidationError, match="both in classes"):
        TaskSettings(**values, classes=("a",), exclude_labels=("a",))
    with pytest.raises(ValidationError, match="same grey value"):
        TaskSettings(**values, mask_classes={"a": 1, "b": 1})
    with pytest.raises(ValidationError, match=r"1\.\.255"):
        TaskSettings(**values, mask_classes={"a": 0})
