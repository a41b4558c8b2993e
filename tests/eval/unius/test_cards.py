"""The cards: the bars of the benchmark, and what a card of one's own may and must say."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import ndimage

from echostill.eval.unius.cards import (
    FOLDER,
    find_card,
    organs_of,
    published_cards,
    read_card,
    read_folder,
)
from echostill.eval.unius.layouts import compiled
from echostill.jobs.benchmarks.preparation import prepare_bench
from echostill.platform.errors import UsageError

CARDS = list(published_cards().values())
EXAMPLES = Path(__file__).parents[3] / "examples" / "cards"


def test_the_published_table():
    assert len(CARDS) == 17
    assert sum(card.published for card in CARDS) == 60_940
    assert len(organs_of(CARDS)) == 15
    kinds = [task.kind for card in CARDS for task in card.tasks if task.benchmark]
    assert (kinds.count("classification"), kinds.count("segmentation")) == (8, 10)
    # Rows 1 to 8 of the table are CUBS to Fetal Planes, 9 to 17 LUMINOUS to CAMUS.
    names = [card.name for card in CARDS]
    assert (names[0], names[7], names[8], names[16]) == (
        "cubs",
        "fetal-planes",
        "luminous",
        "camus",
    )


def test_the_tenth_segmentation_task_is_a_documented_choice():
    both = [card for card in CARDS if sum(task.benchmark for task in card.tasks) == 2]
    (card,) = both
    (task,) = [task for task in card.tasks if task.kind == "segmentation"]
    assert task.label == "I"
    assert "our choice" in task.reason


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_card_is_complete_and_its_task_is_labelled(card):
    assert card.licence.name
    assert card.licence.allows
    assert card.page.startswith("https://")
    assert card.citation
    assert all(task.reason for task in card.tasks)
    for layout in card.layouts:
        assert compiled(layout.images.files).search(layout.example)


def test_names_are_found_however_they_are_written():
    assert find_card("BUS-BRA").name == "busbra"
    assert find_card("fh ps aop").name == "fh-ps-aop"
    with pytest.raises(UsageError, match=r"no set 'camsu'\. Did you mean 'camus'"):
        find_card("camsu")


def changed(tmp_path, **values):
    document = yaml.safe_load((FOLDER / "06-busi.yaml").read_text())
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**document, **values}))
    return str(path)


def test_a_card_of_ones_own_is_read_by_its_path(tmp_path):
    path = changed(tmp_path, name="mine", published=None)
    assert find_card(path).name == "mine"
    assert [card.name for card in read_folder(str(tmp_path))] == ["mine"]
    with pytest.raises(UsageError, match="no card"):
        read_folder(str(tmp_path / "missing"))


LAYOUT = yaml.safe_load((FOLDER / "06-busi.yaml").read_text())["layouts"][0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"organ": ["breast"]}, "organ"),
        ({"licence": {"name": "CC0"}}, "licence.allows"),
        ({"layouts": [{**LAYOUT, "example": "holiday/beach.gif"}]}, "does not match the pattern"),
        ({"layouts": [{**LAYOUT, "images": {"files": "(", "key": "x"}}]}, "regular expression"),
        (
            {"layouts": [{**LAYOUT, "images": {"files": "(?P<key>.*)", "group": "{patient}"}}]},
            "{patient}",
        ),
        ({"layouts": [{**LAYOUT, "labels": {"benign": "beningn"}}]}, "'beningn' is none of"),
        (
            {"layouts": [{**LAYOUT, "masks": [{**LAYOUT["masks"][0], "value": 4}]}]},
            "a value that is no structure's",
        ),
        ({"tasks": [{"kind": "segmentation", "label": "I", "classes": ["a", "b"]}]}, "structures"),
        (
            {"layouts": [{**LAYOUT, "errata": [{"keys": ["1"], "does": "label", "why": "x"}]}]},
            "has a label where it corrects one",
        ),
    ],
)
def test_what_is_wrong_with_a_card_is_said(values, said, tmp_path):
    path = changed(tmp_path, **values)
    with pytest.raises(UsageError) as error:
        read_card(path)
    assert path in str(error.value)
    assert said in str(error.value)


def test_the_example_is_a_card_and_reads_outlines_and_pixel_sizes(tmp_path):
    (card,) = read_folder(str(EXAMPLES))
    assert card.name == "hc18"
    y, x = np.mgrid[:60, :80]
    lines = ["filename,pixel size(mm),head circumference (mm)"]
    heads = {}
    for number in range(3):
        for time in ("", "2"):
            key = f"{number:03d}_{time}HC"
            head = ((x - 40 - number) / 30) ** 2 + ((y - 20) / 24) ** 2 <= 1  # cut off at the top
            pixels = np.random.default_rng(len(heads)).integers(1, 255, (60, 80)).astype(np.uint8)
            outline = head & ~ndimage.binary_erosion(head, border_value=1)
            folder = tmp_path / "hc18" / "training_set"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{key}.png")
            Image.fromarray(outline.astype(np.uint8) * 255).save(folder / f"{key}_Annotation.png")
            lines.append(f"{key}.png,0.{number + 1},44.3")
            heads[key] = head
    (tmp_path / "hc18" / "training_set_pixel_size_and_HC.csv").write_text("\n".join(lines))
    done = prepare_bench(
        str(EXAMPLES / "hc18.yaml"),
        str(tmp_path / "hc18"),
        str(tmp_path / "set"),
        accept_differences=True,
        progress=False,
    )
    rows = done.table.read().to_pylist()
    assert len(rows) == 6
    for row in rows:
        key = row["id"]
        assert row["group"] == key[:3]
        assert row["pixel_mm"] == pytest.approx(0.1 * (int(key[:3]) + 1))
        mask = np.asarray(Image.open(tmp_path / "set" / row["mask"])) > 0
        assert (mask != heads[key]).mean() < 0.005
