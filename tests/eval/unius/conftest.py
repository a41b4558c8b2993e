"""A tiny tree of each set in its real layout: names, nesting, separators, errata."""

import gzip
import io
import json
import os
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE = 24


def speckle(seed, height=SIDE, width=SIDE):
    """A picture that looks like no other: coarse patches under fine noise."""
    rng = np.random.default_rng([7, seed])
    coarse = Image.fromarray(rng.integers(30, 220, (5, 5)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth + rng.normal(0, 6, (height, width)), 1, 255).astype(np.uint8)


def square(height=SIDE, width=SIDE, value=255, box=(6, 6, 14, 16)):
    left, top, right, bottom = box
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = value
    return mask


def encoded(pixels, kind="PNG", **options):
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


def zipped(files):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()


def mha(volume):
    """A MetaImage of uint8 (slices, H, W), zlib-packed as SimpleITK writes it."""
    import zlib

    packed = zlib.compress(volume.astype(np.uint8).tobytes())
    sizes = " ".join(str(size) for size in volume.shape[::-1])
    header = (
        f"ObjectType = Image\nNDims = {volume.ndim}\nBinaryData = True\n"
        "BinaryDataByteOrderMSB = False\nCompressedData = True\n"
        f"CompressedDataSize = {len(packed)}\nDimSize = {sizes}\nElementType = MET_UCHAR\n"
        "ElementDataFile = LOCAL\n"
    )
    return header.encode() + packed


def nifti(volume):
    """A packed NIfTI-1 of uint8 (frames, H, W)."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *volume.shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header) + volume.astype(np.uint8).tobytes(), mtime=0)


@dataclass
class Tree:
    """A download: its files by path, and what must come of it."""

    files: dict[str, bytes]
    rows_in: int
    dropped: dict[str, int] = field(default_factory=dict)
    quarantined: int = 0
    damage: str = ""  # an image of it, to damage

    @property
    def rows(self):
        return self.rows_in - sum(self.dropped.values()) - self.quarantined

    def write(self, folder):
        for name, data in self.files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return str(folder)


def cubs():
    files, rows = {}, []
    events = ["1;0", "0;1", "0;0", "0;0", "0;0", "1;1", "0;1", "0;0"]
    for number, event in enumerate(events, 1):
        patient = f"clin_{number:04d}"
        # The first column names the hospital once; numbers have decimal commas.
        rows.append(f"{'Cyprus' if number == 1 else ''};{patient};M;67;1;26,4;{event}; ")
        for side in "LR":
            name = f"{patient}_{side}"
            files[f"CUBS/IMAGES/{name}.tiff"] = encoded(speckle(number * 2 + (side == "R")), "TIFF")
            stem = f"CUBS/SEGMENTATIONS/Manual-A1/{name}"
            # Both forms occur: a point in a line, or all x and then all y.
            files[f"{stem}-LI.txt"] = b"4 8\n12 8\n20 8\n"
            files[f"{stem}-MA.txt"] = b"4.0 12.0 20.0 \n12.0 12.0 12.0 \n"
    header = ";Patient ID;Sex;Age;Sex;BMI;Base CVE;FUPEvents;TimetoEvent"
    table = "\r\n".join([header, *rows, ""])
    files["CUBS/ClinicalDatabase-CUBS.csv"] = table.encode("utf-8-sig")
    return Tree(files, 16, damage="CUBS/IMAGES/clin_0003_L.tiff")


def uf1990():
    files = {}
    for number in range(6):
        files[f"Uterine fibroid/{number}.jpg"] = encoded(speckle(number), "JPEG", quality=95)
        name = f"Non-fibroid/{number}.jpg"
        files[name] = encoded(speckle(50 + number), "JPEG", quality=95)
    return Tree(files, 12, damage="Non-fibroid/3.jpg")


def tn3k():
    root, files = "Thyroid Dataset/tn3k", {}
    for split, count in (("trainval", 12), ("test", 4)):
        lines = []
        for number in range(count):
            # The names are the same in both folders.
            name, seed = f"{number:04d}.jpg", number + 30 * (split == "test")
            files[f"{root}/{split}-image/{name}"] = encoded(speckle(seed), "JPEG", quality=95)
            # Ringing of JPEG around a grey level between 127 and 150.
            mask = np.where(square() > 0, 230, square(value=140, box=(0, 20, 24, 24)))
            data = encoded(mask.astype(np.uint8), "JPEG", quality=95)
            files[f"{root}/{split}-mask/{name}"] = data
            lines.append(f"{name},{number % 2}")
        table = "\n".join(["name,label", *lines])
        files[f"{root}/label4{split}.csv"] = table.encode()
    for fold in range(5):
        held = [number for number in range(12) if number % 5 == fold]
        kept = [number for number in range(12) if number % 5 != fold]
        text = json.dumps({"train": kept, "val": held})
        files[f"{root}/tn3k-trainval-fold{fold}.json"] = text.encode()
    return Tree(files, 16, damage=f"{root}/trainval-image/0003.jpg")


def stmus():
    files = {}
    for place, muscle in enumerate(("BB", "GM", "TA")):
        for state in ("Healthy", "Pathological"):
            for number in range(3):
                # The same name is in every folder.
                folder = f"Polito-Radboud-DeepLearningUS/{muscle}/{state}"
                seed = place * 20 + number + 10 * (state == "Healthy")
                files[f"{folder}/Images/{number}.png"] = encoded(speckle(seed))
                empty = muscle == "TA" and number == 0
                mask = square(value=0 if empty else 1)
                files[f"{folder}/Masks/{number}.png"] = encoded(mask)
    copies = "Polito-Radboud-DeepLearningUS/Segmentation_models/data/MuscleCNN/train/0.png"
    files[copies] = encoded(speckle(0))
    inner = {"DATASET/DATASET_10.1016j.compbiomed.2021.104623.zip": zipped(files)}
    return Tree({"DATASET.zip": zipped(inner)}, 18)


def aul():
    inner = {}
    count = 0
    for name, numbers in {
        "Benign": (56, 194, 229, 374, 12, 13),
        "Malignant": (1, 2, 306, 4, 5, 6),
        "Normal": (7, 8, 9, 10, 11, 14),
    }.items():
        files = {}
        for number in numbers:
            count += 1
            files[f"{name}/image/{number}.jpg"] = encoded(speckle(number), "JPEG", quality=95)
            masks = f"{name}/segmentation"
            liver, mass = [[2, 2], [20, 2], [20, 20], [2, 20]], [[6, 6], [9, 6], [9, 9], [6, 9]]
            whole = [[0, 0], [23, 0], [23, 23], [0, 23]]
            # Errata: 374 has no liver; the outline of 229 and 306 is the liver, which is missing.
            wrong = number in (229, 306)
            if number not in (229, 306, 374):
                files[f"{masks}/liver/{number}.json"] = json.dumps(liver).encode()
            if name != "Normal":
                files[f"{masks}/mass/{number}.json"] = json.dumps(mass).encode()
            outline = liver if wrong else whole
            files[f"{masks}/outline/{number}.json"] = json.dumps(outline).encode()
        inner[f"{name}.zip"] = zipped(files)
    return Tree({"AUL.zip": zipped(inner)}, count)


def busi():
    root, files = "Dataset_BUSI_with_GT", {}
    for place, name in enumerate(("benign", "malignant", "normal")):
        for number in range(1, 7):
            stem = f"{root}/{name}/{name} ({number})"
            files[f"{stem}.png"] = encoded(np.repeat(speckle(place * 40 + number)[..., None], 3, 2))
            mask = square(value=0 if name == "normal" else 255)
            files[f"{stem}_mask.png"] = encoded(mask)
    files[f"{root}/benign/benign (4)_mask_1.png"] = encoded(square(box=(18, 2, 22, 5)))
    files[f"{root}/benign/benign (4)_mask_2.png"] = encoded(square(box=(2, 18, 5, 22)))
    # A known trap: near-copies with contradicting labels.
    copy = np.clip(speckle(2).astype(int) + 2, 0, 255).astype(np.uint8)
    files[f"{root}/malignant/malignant (6).png"] = encoded(np.repeat(copy[..., None], 3, 2))
    return Tree(files, 18, damage=f"{root}/normal/normal (3).png")


def mmotu():
    files, lists = {}, {"train": [], "val": []}
    for number in range(1, 33):
        split = "val" if number > 16 else "train"
        files[f"OTU_2d/images/{number}.JPG"] = encoded(speckle(number), "JPEG", quality=95)
        coloured = np.stack([square(), square(value=0), square(value=0)], axis=-1)
        files[f"OTU_2d/annotations/{number}.PNG"] = encoded(coloured)
        doubled = "_binary_binary" if number == 9 else "_binary"
        files[f"OTU_2d/annotations/{number}{doubled}.PNG"] = encoded(square(value=1))
        lists[split].append(f"{number}.JPG  {number % 8}")  # two blanks
    for split, lines in lists.items():
        files[f"OTU_2d/{split}_cls.txt"] = ("\n".join(lines) + "\n").encode()
        names = "\n".join(line.split()[0] for line in lines)
        files[f"OTU_2d/{split}.txt"] = names.encode()
    return Tree(files, 32, damage="OTU_2d/images/9.JPG")


def fetal_planes():
    root = "FETAL_PLANES_ZENODO"
    planes = [
        "Fetal abdomen",
        "Fetal brain",
        "Fetal femur",
        "Fetal thorax",
        "Maternal cervix",
        "Other",
    ]
    # The name of the column ends with a blank.
    lines = ["Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train "]
    files = {}
    for number in range(24):
        patient = number // 2 + 1
        name = f"Patient{patient:05d}_Plane{number % 6 + 1}_1_of_2"
        files[f"{root}/Images/{name}.png"] = encoded(speckle(number))
        plane, train = planes[number % 6], int(patient <= 8)
        lines.append(f"{name};{patient};{plane};Not A Brain;Op. 1;Voluson E6;{train} ")
    files[f"{root}/FETAL_PLANES_DB_data.csv"] = "\r\n".join(lines).encode("utf-8-sig")
    damage = f"{root}/Images/Patient00003_Plane5_1_of_2.png"
    return Tree(files, 24, damage=damage)


def luminous():
    files = {}
    for number in range(12):
        stem = f"{number // 2 + 50}_{number}"
        files[f"LUMINOUS_Database/B-mode/{stem}_Bmode.tif"] = encoded(speckle(number), "TIFF")
        files[f"LUMINOUS_Database/Masks/{stem}_Mask.tif"] = encoded(square(), "TIFF")
    return Tree(files, 12, damage="LUMINOUS_Database/B-mode/51_2_Bmode.tif")


def kidneyus():
    files, inside = {}, {}
    for number in range(12):
        name = f"{number:04d}_IM-0001.png"
        # An exact copy of another patient's image.
        inside[f"kidneyUS_images_14_june_2022/{name}"] = encoded(
            speckle(0 if number == 11 else number)
        )
        mask = square(value=0 if number in (3, 4) else 1)
        files[f"kidneyUS/labels/reviewed_masks_1/capsule/{name}"] = encoded(mask)
        files[f"kidneyUS/labels/reviewed_masks_1/regions/{name}"] = encoded(square(value=3))
        files[f"kidneyUS/labels/reviewed_masks_2/capsule/{name}"] = encoded(square(value=0))
    files["kidneyUS/labels/reviewed_labels_1.csv"] = via().encode()
    files["kidneyUS_images_14_june_2022.zip"] = zipped(inside)
    return Tree(files, 12, dropped={"empty mask": 2, "exact copy": 1})


def via():
    """The VIA file of KidneyUS: polygons, one image without a capsule, one without any region."""
    head = "filename,file_size,file_attributes,region_count,region_id"
    lines = [f"{head},region_shape_attributes,region_attributes"]
    for number in range(12):
        shape = {"name": "polygon", "all_points_x": [6, 13, 13, 6], "all_points_y": [6, 6, 15, 15]}
        about = {"Anatomy": "Cortex" if number == 3 else "Capsule"}
        if number == 4:
            shape, about = {}, {}
        cells = [
            json.dumps(value).replace('"', '""') for value in ({"Quality": "Good"}, shape, about)
        ]
        name = f"{number:04d}_IM-0001.png"
        lines.append(f'{name},9,"{cells[0]}",1,0,"{cells[1]}","{cells[2]}"')
    return "\n".join(lines) + "\n"


def gist514():
    root, files, images, regions = "usd514_jpeg_roi", {}, [], []
    for number in range(15):
        name = f"{number:04d}.jpg"
        files[f"{root}/images/{name}"] = encoded(speckle(number), "JPEG", quality=95)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        box = [6, 6, 13, 6, 13, 15, 6, 15]
        region = {"id": number, "image_id": number, "category_id": number % 2 + 1}
        regions.append({**region, "segmentation": [box], "iscrowd": 0})
    for fold in range(5):
        for part in ("train", "val"):
            mine = [n for n in range(15) if (n % 5 == fold) == (part == "val")]
            document = {
                "images": [images[number] for number in mine],
                "annotations": [regions[number] for number in mine],
                "categories": [{"id": 1, "name": "lmym"}, {"id": 2, "name": "gist"}],
            }
            name = f"{root}/annotations/{part}_anno_crop_split_{fold}.json"
            files[name] = json.dumps(document).encode()
    return Tree(files, 15, damage=f"{root}/images/0004.jpg")


def ddti():
    inside = {}
    for number in range(1, 13):
        for stage in ("stage1", "stage2"):
            folder = f"2_preprocessed_data/{stage}"
            inside[f"{folder}/p_image/{number}.PNG"] = encoded(speckle(number))
            inside[f"{folder}/p_mask/{number}.PNG"] = encoded(square())
    root = "Thyroid Dataset"
    files = {f"{root}/DDTI dataset/DDTI.zip": zipped(inside)}
    files[f"{root}/tn3k/test-image/0000.jpg"] = encoded(speckle(99), "JPEG")
    return Tree({"Thyroid Dataset.zip": zipped(files)}, 12)


def busbra():
    files = {}
    data = ["ID,Case,Histology,Pathology,BIRADS"]
    folds = ["ID,Pathology,kFold"]
    for number in range(20):
        case = number // 2 + 1
        stem = f"{case:04d}-{'lr'[number % 2]}"
        files[f"BUSBRA/Images/bus_{stem}.png"] = encoded(speckle(number))
        files[f"BUSBRA/Masks/mask_{stem}.png"] = encoded(square())
        kind = "malignant" if case % 2 else "benign"
        data.append(f"bus_{stem},{case},x,{kind},4")
        folds.append(f"bus_{stem},{kind},{case % 5 + 1}")
    files["BUSBRA/bus_data.csv"] = "\n".join(data).encode()
    files["BUSBRA/5-fold-cv.csv"] = "\n".join(folds).encode()
    return Tree(files, 20, damage="BUSBRA/Images/bus_0003-l.png")


def nerveseg():
    files = {}
    for subject in range(1, 7):
        for frame in range(1, 5):
            stem = f"train/{subject}_{frame}"
            # Neighbouring frames are nearly equal.
            near = speckle(subject).astype(int) + frame
            files[f"{stem}.tif"] = encoded(np.clip(near, 0, 255).astype(np.uint8), "TIFF")
            mask = square(value=255 if frame > 2 else 0)
            files[f"{stem}_mask.tif"] = encoded(mask, "TIFF")
    files["test/1.tif"] = encoded(speckle(90), "TIFF")  # the competition's, without a mask
    files["train_masks.csv"] = b"subject,img,pixels\n1,1,\n"
    return Tree(files, 24, damage="train/2_2.tif")


def luss():
    files = {}
    for split, count in (("train", 12), ("test", 5)):
        for number in range(count):
            name = f"{number:03d}.png"
            seed = number + 40 * (split == "test")
            files[f"data-3/{split}/images/{name}"] = encoded(speckle(seed))
            mask = square(value=number % 5 + 1)
            files[f"data-3/{split}/masks/{name}"] = encoded(mask)
    return Tree(files, 17, damage="data-3/train/images/003.png")


def fh_ps_aop():
    root = "Pubic Symphysis-Fetal Head Segmentation and Angle of Progression"
    inside = {}
    for number in range(1, 13):
        grey = speckle(number)
        inside[f"{root}/image_mha/{number:05d}.mha"] = mha(np.stack([grey, grey, grey]))
        labels = square(value=1) + square(value=2, box=(16, 16, 22, 22))
        inside[f"{root}/label_mha/{number:05d}.mha"] = mha(labels)
    return Tree({f"{root}.zip": zipped({f"{root}.zip": zipped(inside)})}, 12)


def camus():
    files, frames = {}, 0
    sides = ["training"] * 6 + ["validation", "testing", "testing"]
    for number, _ in enumerate(sides, 1):
        for view in ("2CH", "4CH"):
            count = 3 + (number + len(view)) % 2
            frames += count
            stack = np.stack([speckle(number * 10 + (view == "4CH"))] * count)
            stack[:, :8] = 0  # outside of the sector
            labels = np.stack([square(value=1 + frame % 3) for frame in range(count)])
            stem = f"CAMUS_public/database_nifti/patient{number:04d}/patient{number:04d}_{view}"
            files[f"{stem}_half_sequence.nii.gz"] = nifti(stack)
            files[f"{stem}_half_sequence_gt.nii.gz"] = nifti(labels)
            files[f"{stem}_ED.nii.gz"] = nifti(stack[:1])
            files[f"{stem}_ED_gt.nii.gz"] = nifti(labels[:1])
    for side in dict.fromkeys(sides):
        patients = [f"patient{n:04d}" for n, own in enumerate(sides, 1) if own == side]
        name = f"CAMUS_public/database_split/subgroup_{side}.txt"
        files[name] = ("\n".join(patients) + "\n").encode()
    return Tree(files, frames)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """A thousand small files are written; that each is on the disk is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


BUILDERS = {
    "cubs": cubs,
    "uf1990": uf1990,
    "tn3k": tn3k,
    "stmus": stmus,
    "aul": aul,
    "busi": busi,
    "mmotu": mmotu,
    "fetal-planes": fetal_planes,
    "luminous": luminous,
    "kidneyus": kidneyus,
    "gist514": gist514,
    "ddti": ddti,
    "busbra": busbra,
    "nerveseg": nerveseg,
    "luss": luss,
    "fh-ps-aop": fh_ps_aop,
    "camus": camus,
}


@pytest.fixture(scope="session")
def make_tree():
    """Return a function that gives the tree of a set, by name."""
    return lambda name: BUILDERS[name]()


@pytest.fixture(scope="session")
def prepared_set(tmp_path_factory):
    """Return a function that prepares the tree of a set once, and gives its folder."""
    from echostill.jobs.benchmarks.preparation import prepare_bench

    made = {}

    def prepared(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            tree = BUILDERS[name]()
            source = tree.write(folder / "download")
            options = {"accept_differences": True, "progress": False}
            made[name] = tree, prepare_bench(name, source, str(folder / "set"), **options)
        return made[name]

    return prepared
