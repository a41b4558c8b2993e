"""Each published set from its real layout: every trap, every row accounted for."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from echostill.curation.copies.look_alikes import LookAlikes
from echostill.eval.datasets import TaskSettings, load_dataset
from echostill.eval.splits import split_dataset
from echostill.eval.unius.cards import published_cards
from echostill.eval.unius.prepare import prepare
from echostill.eval.unius.prepared import (
    DROPPED,
    QUARANTINE,
    SPLITS,
    open_prepared,
    verify_prepared,
)
from echostill.eval.unius.splits import check_groups, read_split
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import Table

SETS = list(published_cards())
DAMAGEABLE = [
    name for name in SETS if name not in ("stmus", "aul", "kidneyus", "ddti", "fh-ps-aop")
]


def again(card, source, folder, **options):
    options = {"accept_differences": True, "progress": False, **options}
    return prepare(published_cards()[card], str(source), str(folder), LookAlikes(), **options)


def rows_of(done):
    return {row["source"]: row for row in done.table.read().to_pylist()}


def row_of(done, ending):
    (row,) = [row for source, row in rows_of(done).items() if source.endswith(ending)]
    return row


def mask_of(done, ending):
    storage, row = done.table.storage, row_of(done, ending)
    return np.asarray(Image.open(io.BytesIO(storage.read(row["mask"]))))


def held(done, which):
    return Table.open(done.table.storage.at(which), "bench prepare").read().to_pylist()


@pytest.mark.parametrize("name", SETS)
def test_every_row_is_accounted_for(name, prepared_set):
    tree, done = prepared_set(name)
    counts = done.counts
    assert (counts["rows_in"], counts["rows"]) == (tree.rows_in, tree.rows), held(done, QUARANTINE)
    assert (counts["dropped"], counts["quarantined"]) == (tree.dropped, tree.quarantined)
    assert len(held(done, QUARANTINE)) == tree.quarantined
    assert len(held(done, DROPPED)) == sum(tree.dropped.values())
    assert done.table.manifest["unread"] == 0, done.table.manifest["unread_first"]
    assert verify_prepared(done.table.storage.root).sound


@pytest.mark.parametrize("name", SETS)
def test_the_split_cuts_no_group_and_loses_no_row(name, prepared_set):
    _, done = prepared_set(name)
    rows = done.table.read().to_pylist()
    split = read_split(done.table.storage, SPLITS, done.table.digest)
    check_groups(split, {row["id"]: row["group"] for row in rows})
    sides = [row for side in ("train", "val", "test") for row in split.sides[side]]
    assert sorted(sides) == sorted(row["id"] for row in rows)
    assert all(split.sides.values())
    assert split.kind == {
        **dict.fromkeys(("tn3k", "mmotu", "fetal-planes", "luss", "camus"), "official"),
        **dict.fromkeys(("gist514", "busbra"), "official fold"),
    }.get(name, "drawn")


@pytest.mark.parametrize("name", SETS)
def test_evaluate_reads_what_was_prepared(name, prepared_set):
    tree, done = prepared_set(name)
    document = yaml.safe_load(done.table.storage.read("evaluate.yaml"))
    card = published_cards()[name]
    assert [task["kind"] for task in document["evaluate"]["tasks"]] == [
        task.kind for task in card.tasks
    ]
    for values in document["evaluate"]["tasks"]:
        task = TaskSettings.model_validate_json(json.dumps(values))
        data = load_dataset(task, 16)
        assert 0 < len(data) <= tree.rows
        split = split_dataset(data, 0)
        assert not set(data.groups[split.train]) & set(data.groups[split.test])
        (own,) = [one for one in card.tasks if one.kind == task.kind]
        assert data.class_names == own.names


@pytest.mark.parametrize("name", ["aul", "busi", "camus", "gist514"])
def test_the_same_download_gives_the_same_bytes(name, prepared_set, tmp_path):
    tree, done = prepared_set(name)
    other = again(name, tree.write(tmp_path / "elsewhere"), tmp_path / "set")
    assert other.table.digest == done.table.digest
    first, second = done.table.storage, other.table.storage
    assert first.read(SPLITS) == second.read(SPLITS)
    assert first.read("labels.csv") == second.read("labels.csv")


@pytest.mark.parametrize("name", DAMAGEABLE)
def test_a_damaged_file_costs_one_row(name, make_tree, tmp_path):
    tree = make_tree(name)
    damaged = tree.damage or next(
        n for n in tree.files if n.endswith("patient0002_2CH_half_sequence.nii.gz")
    )
    frames = 1
    if name == "camus":
        frames = 4
        tree.files[damaged] = tree.files[damaged][:40]
    else:
        tree.files[damaged] = tree.files[damaged][: len(tree.files[damaged]) // 3]
    done = again(name, tree.write(tmp_path / "download"), tmp_path / "set")
    assert done.counts["quarantined"] == 1
    # A volume that cannot be opened is one row: how many frames it had is not known.
    assert done.counts["rows_in"] == tree.rows_in - frames + 1
    (row,) = held(done, QUARANTINE)
    assert row["source"] == damaged
    assert row["message"].startswith("the image ")


@pytest.mark.parametrize("name", SETS)
def test_a_wrong_folder_is_named_with_what_was_expected(name, tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.gif").write_bytes(b"GIF89a")
    card = published_cards()[name]
    with pytest.raises(UsageError) as error:
        again(name, tmp_path / "holiday", tmp_path / "set")
    text = str(error.value)
    assert f"no image of {name}" in text
    assert card.layouts[0].example in text
    assert "'beach.gif'" in text
    assert card.page in text
    assert card.licence.name in text
    assert not (tmp_path / "set").exists()


def test_another_sets_folder_is_recognised(make_tree, tmp_path):
    source = make_tree("busi").write(tmp_path / "download")
    with pytest.raises(UsageError, match="look like those of busi"):
        again("aul", source, tmp_path / "set")


@pytest.mark.parametrize("download", [None, "missing"])
def test_a_missing_download_ends_with_page_and_licence(download, tmp_path):
    card = published_cards()["fetal-planes"]
    source = download and str(tmp_path / download)
    with pytest.raises(UsageError, match=r"https://zenodo.org/records/3904280 .*CC BY 4.0"):
        prepare(card, source, str(tmp_path / "set"), LookAlikes())


def test_counts_that_differ_are_refused_until_accepted(make_tree, tmp_path):
    source = make_tree("busi").write(tmp_path / "download")
    with pytest.raises(UsageError, match=r"18 images instead of 780; 6 images of 'benign'"):
        again("busi", source, tmp_path / "set", accept_differences=False)
    assert not (tmp_path / "set").exists()
    assert again("busi", source, tmp_path / "set").counts["differences"][0].startswith("18 images")


def test_counts_of_frames_are_checked_too(make_tree, tmp_path):
    source = make_tree("camus").write(tmp_path / "download")
    with pytest.raises(UsageError, match="62 images instead of 19232"):
        again("camus", source, tmp_path / "set", accept_differences=False)
    with pytest.raises(UsageError, match="not a prepared set"):
        open_prepared(str(tmp_path / "set"))


def test_a_known_checksum_is_checked_in_folders_and_archives(prepared_set):
    for name, ending in (("busbra", "5-fold-cv.csv"), ("stmus", "104623.zip")):
        _, done = prepared_set(name)
        assert any(f"{ending}' has the SHA-256" in text for text in done.counts["differences"]), (
            done.counts
        )


def test_prepared_again_it_is_there_and_another_download_is_refused(make_tree, tmp_path):
    tree = make_tree("uf1990")
    source = tree.write(tmp_path / "download")
    first = again("uf1990", source, tmp_path / "set")
    assert not first.already_done
    assert again("uf1990", source, tmp_path / "set").already_done
    (tmp_path / "download" / "Non-fibroid" / "0.jpg").unlink()
    with pytest.raises(UsageError, match="download: 12 files -> 11 files"):
        again("uf1990", source, tmp_path / "set")
    assert again("uf1990", source, tmp_path / "set", overwrite=True).counts["rows"] == 11


def test_killed_in_the_middle_the_same_command_ends_it(make_tree, tmp_path, monkeypatch):
    source = make_tree("busi").write(tmp_path / "download")
    whole = again("busi", source, tmp_path / "whole")
    written = []

    def kill(self, name, data):
        if name.startswith("images/"):
            written.append(name)
            if len(written) == 9:
                raise KeyboardInterrupt
        return write(self, name, data)

    write = Storage.write
    monkeypatch.setattr(Storage, "write", kill)
    with pytest.raises(KeyboardInterrupt):
        again("busi", source, tmp_path / "set")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="not a prepared set"):
        open_prepared(str(tmp_path / "set"))
    assert again("busi", source, tmp_path / "set").table.digest == whole.table.digest


def test_cubs_joins_events_by_patient_and_fills_between_the_contours(prepared_set):
    _, done = prepared_set("cubs")
    left, right = row_of(done, "clin_0002_L.tiff"), row_of(done, "clin_0002_R.tiff")
    assert left["label"] == right["label"] == "event"
    assert row_of(done, "clin_0003_L.tiff")["label"] == "no event"
    assert left["group"] == right["group"] == "clin_0002"
    mask = mask_of(done, "clin_0002_L.tiff")
    assert set(np.unique(mask)) == {0, 1}
    inside = np.argwhere(mask)
    assert inside.min(0).tolist() == [8, 4]
    assert inside.max(0).tolist() == [12, 20]


def test_cubs_part_two_has_masks_but_no_labels(make_tree, tmp_path):
    tree = make_tree("cubs")
    images = {n: d for n, d in tree.files.items() if n.endswith(".tiff")}
    profiles = {n: d for n, d in tree.files.items() if n.endswith(".txt")}
    tree.files = {f"images/{Path(n).name}": d for n, d in images.items()}
    tree.files |= {f"LIMA-Profiles/Manual-A1/{Path(n).name}": d for n, d in profiles.items()}
    done = again("cubs", tree.write(tmp_path / "download"), tmp_path / "set")
    assert done.table.manifest["layout"] == "part 2, technical"
    assert {row["label"] for row in rows_of(done).values()} == {""}
    assert all(row["mask"] for row in rows_of(done).values())


def test_uf1990_tells_the_class_by_the_folder(prepared_set):
    _, done = prepared_set("uf1990")
    assert row_of(done, "Uterine fibroid/0.jpg")["label"] == "fibroid"
    assert row_of(done, "Non-fibroid/0.jpg")["label"] == "non-fibroid"


def test_tn3k_thresholds_jpeg_masks_and_numbers_the_folds(prepared_set):
    _, done = prepared_set("tn3k")
    mask = mask_of(done, "trainval-image/0003.jpg")
    # The band of grey level 140 is below 150; ringing moves an edge by a pixel at most.
    assert mask[20:].sum() == 0
    assert abs(int(mask.sum()) - 80) <= 12
    twins = row_of(done, "trainval-image/0003.jpg"), row_of(done, "test-image/0003.jpg")
    assert [row["split"] for row in twins] == ["train", "test"]
    assert len({row["id"] for row in twins}) == 2
    # Sorted as text, 10 would come after 1.
    assert [row_of(done, f"trainval-image/{n:04d}.jpg")["fold"] for n in (2, 10, 11)] == list("201")
    assert twins[0]["label"] == "malignant"


def test_stmus_skips_empty_masks_and_reads_a_zip_in_a_zip(prepared_set):
    _, done = prepared_set("stmus")
    empty = row_of(done, "TA/Healthy/Images/0.png")
    assert (empty["label"], empty["mask"]) == ("tibialis anterior", "")
    assert row_of(done, "BB/Healthy/Images/0.png")["mask"]
    assert all("DATASET.zip/DATASET/" in source for source in rows_of(done))


def test_aul_errata(prepared_set):
    _, done = prepared_set("aul")
    assert row_of(done, "Benign/image/374.jpg")["mask"] == ""
    usual, corrected = mask_of(done, "image/194.jpg"), mask_of(done, "image/229.jpg")
    assert np.array_equal(usual, corrected)
    assert np.array_equal(mask_of(done, "image/306.jpg"), usual)
    assert (usual[6:10, 6:10] == 2).all()  # the mass, over the liver
    assert int((usual == 1).sum()) == 19 * 19 - 16
    assert row_of(done, "Normal/image/7.jpg")["structures"] == "1"


def test_aul_a_missing_outline_that_no_erratum_names_costs_its_row(make_tree, tmp_path):
    tree = make_tree("aul")
    with zipfile.ZipFile(io.BytesIO(tree.files["AUL.zip"])) as outer:
        inner = zipfile.ZipFile(io.BytesIO(outer.read("Benign.zip")))
    files = {n: inner.read(n) for n in inner.namelist() if not n.endswith("liver/56.json")}
    done = again("aul", _unzipped(tree, files, tmp_path), tmp_path / "set")
    (row,) = held(done, QUARANTINE)
    assert row["source"].endswith("image/56.jpg")
    assert "has no mask (liver)" in row["message"]


def _unzipped(tree, benign, folder):
    """AUL as somebody unpacked it, with other files for the benign images."""
    with zipfile.ZipFile(io.BytesIO(tree.files["AUL.zip"])) as outer:
        for name in ("Malignant", "Normal"):
            zipfile.ZipFile(io.BytesIO(outer.read(f"{name}.zip"))).extractall(folder / "download")
    for name, data in benign.items():
        path = folder / "download" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "download"


def test_busi_unites_masks_and_groups_near_copies(prepared_set):
    _, done = prepared_set("busi")
    mask = mask_of(done, "benign (4).png")
    assert mask[3, 20] == mask[20, 3] == mask[10, 10] == 1
    assert int(mask.sum()) == 80 + 12 + 12
    assert not mask_of(done, "normal (1).png").any()
    copy, first = row_of(done, "malignant (6).png"), row_of(done, "benign (2).png")
    assert copy["group"] == first["group"]
    assert copy["label"] != first["label"]
    assert done.counts["look_alikes"] == {"merged": 2, "contradictions": 1, "across": 0}


def test_mmotu_reads_binary_masks_and_lists_of_labels(prepared_set):
    _, done = prepared_set("mmotu")
    row = row_of(done, "images/9.JPG")
    assert (row["label"], row["split"]) == ("serous cystadenoma", "train")
    assert int(mask_of(done, "images/9.JPG").sum()) == 80  # from _binary_binary.PNG
    assert row_of(done, "images/17.JPG")["split"] == "test"


def test_fetal_planes_reads_the_column_with_a_blank(prepared_set):
    _, done = prepared_set("fetal-planes")
    row = row_of(done, "Patient00003_Plane5_1_of_2.png")
    assert (row["label"], row["group"], row["split"]) == ("cervix", "3", "train")
    assert {row["split"] for row in rows_of(done).values()} == {"train", "test"}


def test_luminous_groups_by_subject(prepared_set):
    _, done = prepared_set("luminous")
    assert row_of(done, "51_2_Bmode.tif")["group"] == "51"
    assert row_of(done, "51_2_Bmode.tif")["image"].endswith(".png")


def test_kidneyus_drops_empty_masks_and_copies(prepared_set):
    _, done = prepared_set("kidneyus")
    dropped = {row["source"]: row for row in held(done, DROPPED)}
    (copy,) = [row for name, row in dropped.items() if name.endswith("0011_IM-0001.png")]
    assert "0000_IM-0001.png" in copy["message"]
    assert {row["error_class"] for row in dropped.values()} == {"empty mask", "exact copy"}
    assert int(mask_of(done, "0001_IM-0001.png").sum()) == 80


def test_kidneyus_without_masks_draws_the_polygons(make_tree, prepared_set, tmp_path):
    tree = make_tree("kidneyus")
    tree.files = {name: data for name, data in tree.files.items() if "reviewed_masks" not in name}
    done = again("kidneyus", tree.write(tmp_path / "download"), tmp_path / "set")
    _, usual = prepared_set("kidneyus")
    assert done.counts["dropped"] == usual.counts["dropped"]
    same = mask_of(done, "0001_IM-0001.png") == mask_of(usual, "0001_IM-0001.png")
    assert same.all()


def test_gist514_draws_categories_and_keeps_the_folds(prepared_set):
    _, done = prepared_set("gist514")
    assert row_of(done, "0003.jpg")["structures"] == "2"
    assert row_of(done, "0004.jpg")["structures"] == "1"
    assert row_of(done, "0003.jpg")["fold"] == "3"
    split = read_split(done.table.storage, SPLITS, done.table.digest)
    assert split.folds_kind == "official"
    assert split.sides["test"] == split.folds["0"]


def test_ddti_lies_in_the_download_of_tn3k(prepared_set):
    _, done = prepared_set("ddti")
    assert all("DDTI.zip/2_preprocessed_data/stage1/p_image" in name for name in rows_of(done))
    assert int(mask_of(done, "p_image/3.PNG").sum()) == 80


def test_busbra_pairs_masks_and_tests_on_fold_one(prepared_set):
    _, done = prepared_set("busbra")
    row = row_of(done, "bus_0003-l.png")
    assert (row["group"], row["label"], row["fold"]) == ("3", "malignant", "4")
    split = read_split(done.table.storage, SPLITS, done.table.digest)
    assert split.sides["test"] == split.folds["1"]
    assert int(mask_of(done, "bus_0003-r.png").sum()) == 80


def test_nerveseg_keeps_empty_masks_and_splits_by_subject(prepared_set):
    _, done = prepared_set("nerveseg")
    rows = rows_of(done)
    assert {row["group"] for row in rows.values()} == set("123456")
    assert row_of(done, "train/2_1.tif")["structures"] == ""
    assert not mask_of(done, "train/2_1.tif").any()
    assert not any("test/" in name for name in rows)


def test_luss_pairs_by_folder_and_keeps_five_classes(prepared_set):
    _, done = prepared_set("luss")
    assert {row["structures"] for row in rows_of(done).values()} == set("12345")


def test_luss_without_folders_for_testing_has_no_official_split(make_tree, tmp_path):
    tree = make_tree("luss")
    tree.files = {n.replace("/train/", "/"): d for n, d in tree.files.items() if "/test/" not in n}
    done = again("luss", tree.write(tmp_path / "download"), tmp_path / "set")
    assert done.table.manifest["layout"] == "one folder"
    split = read_split(done.table.storage, SPLITS, done.table.digest)
    assert (split.kind, split.folds_kind, len(split.folds)) == ("drawn", "drawn", 5)


def test_fh_ps_aop_takes_three_slices_for_colours(prepared_set):
    _, done = prepared_set("fh-ps-aop")
    row = row_of(done, "00003.mha")
    pixels = Image.open(io.BytesIO(done.table.storage.read(row["image"])))
    assert pixels.mode == "RGB"
    assert row["structures"] == "1 2"
    assert row["source"].count(".zip/") == 2


def test_camus_frames_sides_and_the_dark_outside(prepared_set):
    _, done = prepared_set("camus")
    row = row_of(done, "patient0002_4CH_half_sequence.nii.gz#1")
    assert (row["group"], row["split"], row["structures"]) == ("patient0002", "train", "2")
    assert row_of(done, "patient0007_2CH_half_sequence.nii.gz#0")["split"] == "val"
    assert row_of(done, "patient0009_2CH_half_sequence.nii.gz#0")["split"] == "test"
    # Labels where the image is 0 are set to 0: two rows of the square of ten.
    assert int((mask_of(done, "patient0002_4CH_half_sequence.nii.gz#1") > 0).sum()) == 8 * 8


def test_camus_a_short_label_volume_costs_its_clip(make_tree, tmp_path):
    tree = make_tree("camus")
    (name,) = [n for n in tree.files if n.endswith("patient0003_2CH_half_sequence_gt.nii.gz")]
    tree.files[name] = tree.files[name.replace("half_sequence_gt", "ED_gt")]
    done = again("camus", tree.write(tmp_path / "download"), tmp_path / "set")
    (row,) = held(done, QUARANTINE)
    assert "24 x 24, but the image 24 x 24 in" in row["message"]


def test_an_official_split_that_cuts_a_patient_is_an_error(make_tree, tmp_path):
    tree = make_tree("fetal-planes")
    (name,) = [n for n in tree.files if n.endswith(".csv")]
    text = tree.files[name].decode("utf-8-sig")
    tree.files[name] = text.replace("_1_of_2;1;", "_1_of_2;12;").encode()
    with pytest.raises(EchostillError, match="group '12' on two sides"):
        again("fetal-planes", tree.write(tmp_path / "download"), tmp_path / "set")


def test_listed_without_an_image_and_masks_without_one_are_quarantined(make_tree, tmp_path):
    tree = make_tree("busbra")
    del tree.files["BUSBRA/Images/bus_0003-l.png"]
    done = again("busbra", tree.write(tmp_path / "download"), tmp_path / "set")
    said = [row["message"] for row in held(done, QUARANTINE)]
    assert len(said) == done.counts["quarantined"] == 1
    assert "bus_0003-l" in said[0]
    assert done.counts["rows_in"] == 20
