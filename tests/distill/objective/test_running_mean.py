import torch

from echostill.distill.objective.running_mean import RunningMean


def test_running_mean_is_the_corrected_exponential_mean():
    running = RunningMean(4, momentum=0.9).double()
    batches = [torch.randn(5, 4, dtype=torch.float64) for _ in range(6)]
    torch.testing.assert_close(running.eval()(batches[0]), batches[0].mean(dim=0))
    assert running.weight == 0
    running.train()
    for count, features in enumerate(batches, start=1):
        weights = 0.9 ** torch.arange(count - 1, -1, -1, dtype=torch.float64)
        means = torch.stack([one.mean(dim=0) for one in batches[:count]])
        expected = (weights[:, None] * means).sum(dim=0) / weights.sum()
        torch.testing.assert_close(running(features), expected)
    before = running(batches[0])
    restored = RunningMean(4, momentum=0.9).double()
    restored.load_state_dict(running.state_dict())
    torch.testing.assert_close(restored.eval()(batches[3]), before)
