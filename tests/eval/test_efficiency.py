import pytest
import torch

from echostill.eval.efficiency import efficiency
from echostill.platform.models import create_encoder


@pytest.mark.slow
def test_efficiency_tells_what_it_measured():
    encoder = create_encoder("tinyusfm-micro").train()
    result = efficiency(encoder, batch_size=2, repeats=2, warmup=1)
    assert result["parameters"] == sum(p.numel() for p in encoder.backbone.parameters())
    assert 0 < result["gflops_paper"] < result["gflops"]
    assert result["latency_ms"] > 0
    assert result["images_per_second"] > 0
    assert result["batch_size"] == 2
    assert result["image_size"] == 128
    assert result["threads"] == torch.get_num_threads()
    assert "CPU" in result["device"]
