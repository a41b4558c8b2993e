import numpy as np
import torch

from echostill.distill.objective.outputs import Needs, ask_student, ask_teacher

POOLED = {"preset": "fixed-weight", "token_weight": 0.0, "pooled_weight": 1.0}


def test_the_loss_follows_the_formula_in_float64(objective_of, batch_of, lose):
    objective, (pixels, masks) = objective_of(**POOLED), batch_of()
    with torch.no_grad():
        found = lose(objective, (pixels, masks)).distillation
        views = objective.views(pixels, masks)
        needs = Needs(pooled=True)
        teacher = ask_teacher(objective.teacher, views, needs).pooled.numpy()
        student = ask_student(objective.student, views, needs)[1].pooled.numpy()
    adapter = objective.terms["pooled"].adapter
    made = student @ adapter.weight.detach().numpy().T + adapter.bias.detach().numpy()
    # After one batch the running moments are those of this batch, over both views.
    spread = np.sqrt(np.maximum(teacher.var(axis=0), 1e-4))
    wanted = (teacher - teacher.mean(axis=0)) / spread
    by_view = ((made - wanted) ** 2).mean(axis=1).reshape(2, len(pixels))
    np.testing.assert_allclose(found.numpy(), by_view.sum(axis=0), rtol=1e-9)


def test_features_are_matched_whatever_the_teachers_scale(objective_of):
    outputs = torch.randn(16, 128, dtype=torch.float64)
    targets = []
    for scale, shift in ((1.0, 0.0), (7.0, 2.0)):
        term = objective_of(**POOLED).terms["pooled"]
        part = type("Part", (), {"pooled": scale * outputs + shift})
        targets += term.targets([part])
    torch.testing.assert_close(*targets)
