import numpy as np

from echostill.curation.deidentification.text.found import Text


def test_a_text_lies_in_a_mask_that_has_some_of_its_cells_whole():
    cells = tuple((x, 8, x + 4, 12) for x in range(0, 40, 4))
    text = Text((0, 8, 40, 12), 0.9, cells)
    for columns, inside in ((0, False), (11, False), (12, True), (40, True)):
        mask = np.zeros((20, 60), dtype=bool)
        mask[:, :columns] = True
        assert text.lies_in(mask) == inside
    above = np.zeros((20, 60), dtype=bool)
    above[:11] = True  # an edge through all the cells: their text may lie beyond it
    assert not text.lies_in(above)


def test_a_text_without_cells_counts_by_its_box():
    mask = np.zeros((20, 60), dtype=bool)
    mask[:, :10] = True
    assert Text((8, 4, 20, 14), 0.9).lies_in(mask)
    assert not Text((10, 4, 20, 14), 0.9).lies_in(mask)
    assert not Text((70, 4, 80, 14), 0.9).lies_in(mask)
