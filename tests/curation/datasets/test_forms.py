"""Each form is read by the libraries that it is for, and gives back ids and pixels."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from echostill.curation.datasets.forms import FORMS, folder_name
from echostill.curation.datasets.writing import export_dataset

pytestmark = pytest.mark.slow  # they import torchvision, MONAI and others
SHARES = {"train": 0.8, "test": 0.2}


@pytest.fixture(scope="module")
def exported(coreset_store, tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    for form in FORMS:
        export_dataset(
            coreset_store.root,
            "default",
            str(root / form),
            form,
            shares=SHARES,
            licence="CC BY 4.0",
        )
    return root


def same(picture, pixels):
    picture = picture if isinstance(picture, Image.Image) else Image.open(io.BytesIO(picture))
    expected = Image.fromarray(pixels)
    return picture.mode == expected.mode and np.array_equal(np.asarray(picture), pixels)


def compare(coreset_store, found):
    assert found.keys() == coreset_store.pictures.keys()
    assert all(same(picture, coreset_store.pictures[key]) for key, picture in found.items())


def test_torchvision_and_monai_read_the_folder(coreset_store, exported):
    from monai.data import Dataset
    from monai.transforms import LoadImage
    from torchvision.datasets import ImageFolder

    found, classes = {}, set()
    for side in SHARES:
        images = ImageFolder(str(exported / "folder" / side), loader=Image.open)
        classes |= set(images.classes)
        for (path, _), (picture, _) in zip(images.samples, images, strict=True):
            found[path.rsplit("/", 1)[1].removesuffix(".png")] = picture
    compare(coreset_store, found)
    assert classes == {"benign", "a%2Fb", "%2E%2E", "unlabelled"}
    paths = [path for path, _ in images.samples]
    loaded = Dataset(paths, LoadImage(image_only=True, reader="PILReader"))
    assert len([loaded[row] for row in range(len(paths))]) == len(paths)


def test_webdataset_reads_the_tar_files(coreset_store, exported):
    import webdataset

    found = {}
    for side in SHARES:
        shards = sorted(map(str, (exported / "webdataset").glob(f"{side}-*.tar")))
        for sample in webdataset.WebDataset(shards, shardshuffle=False):
            known = json.loads(sample["json"])
            assert known["image_id"] == sample["__key__"]
            assert known["split"] == side
            found[sample["__key__"]] = sample["png"]
    compare(coreset_store, found)


def test_hugging_face_reads_its_parquet(coreset_store, exported, tmp_path):
    from datasets import load_dataset

    sides = load_dataset(str(exported / "hf"), cache_dir=str(tmp_path))
    assert set(sides) == set(SHARES)
    rows = [row for side in sides.values() for row in side]
    compare(coreset_store, {row["image_id"]: row["image"] for row in rows})


def test_polars_and_pandas_read_the_parquet_folder(coreset_store, exported):
    import pandas
    import polars

    rows = [
        row
        for side in SHARES
        for row in polars.read_parquet(exported / "parquet" / side / "*.parquet").to_dicts()
    ]
    compare(coreset_store, {row["image_id"]: row["image"] for row in rows})
    assert set(pandas.read_parquet(exported / "parquet/train")["split"]) == {"train"}


def test_pandas_and_monai_read_the_csv(coreset_store, exported):
    import pandas
    from monai.data import CSVDataset

    table = exported / "csv/metadata.csv"
    rows = pandas.read_csv(table, keep_default_na=False).to_dict("records")
    compare(
        coreset_store,
        {row["image_id"]: Image.open(exported / "csv" / row["file_name"]) for row in rows},
    )
    assert len(CSVDataset(str(table))) == len(rows)


@pytest.mark.parametrize("form", FORMS)
def test_croissant_is_valid_and_gives_the_rows(coreset_store, exported, form):
    import mlcroissant

    described = mlcroissant.Dataset(str(exported / form / "croissant.json"))
    assert not described.metadata.ctx.issues.errors
    ids = {row["images/image_id"].decode() for row in described.records("images")}
    assert ids == coreset_store.pictures.keys()


@pytest.mark.parametrize("form", FORMS)
def test_the_card_says_what_whence_and_how(exported, form):
    card = (exported / form / "README.md").read_text()
    assert "license_name: CC BY 4.0" in card
    assert "60 ultrasound images" in card
    assert "It is not recorded whether pixels were de-identified." in card
    assert "The pool has 90 images" in card


def test_folder_names_are_distinct_and_stay_inside():
    labels = ["a", "a/b", "a%2Fb", ".", "..", "...", "a.b", "", "\n", "\x00", "ä", "é"]
    names = [folder_name(label) for label in labels if label.strip()]
    assert len(set(names)) == len(names)
    assert not any("/" in name or name.strip(".") == "" for name in names)
