import pytest

from echostill.curation.scoring.balance import Balance


def test_the_ratio_is_that_of_the_rates():
    balance = Balance(150, "measured", 3300, "stated")
    assert balance.cores_per_gpu == pytest.approx(22)
    assert "22.0 cores per GPU" in balance.describe(16, 0)
    assert "8.0 here, which keep the GPUs 36% busy" in balance.describe(16, 2)
    assert "keep the GPUs 100% busy" in balance.describe(64, 1)
