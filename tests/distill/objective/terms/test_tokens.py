import torch

from echostill.distill.objective.terms.tokens import normalise_tokens, token_distance


def test_token_distance_ignores_the_scale_of_the_teacher():
    student, teacher = torch.randn(2, 3, 4, 32)
    for distance in ("mse", "cosine"):
        torch.testing.assert_close(
            token_distance(student, normalise_tokens(teacher), distance),
            token_distance(student, normalise_tokens(7 * teacher + 2), distance),
            atol=1e-4,
            rtol=1e-4,
        )
