import pytest

from echostill.eval.evaluation import EvaluateConfig
from echostill.platform.config import load
from echostill.platform.errors import UsageError

QUICKSTART = "examples/quickstart/config.yaml"


def test_a_seed_counts_once():
    with pytest.raises(UsageError, match="more than once"):
        load(EvaluateConfig, "evaluate", QUICKSTART, ["seeds=[1, 1]"])
