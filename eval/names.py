"""Names that an evaluation's result is written and read with."""

RESULT = "evaluation.json"
FORMAT = 2  # of the result; 1 had one split per seed, and no predictions

TEACHER, DISTILLED, MIM_ONLY, UNTRAINED = "teacher", "distilled", "MIM-only", "untrained"
ROLES = (TEACHER, DISTILLED, MIM_ONLY, UNTRAINED)
CONSTANT, THUMBNAIL = "constant", "thumbnail"
TRIVIAL = (CONSTANT, THUMBNAIL)  # candidates of every evaluation, which need no model

KNN, LINEAR, GRID, FINE_TUNED, FEW_SHOT = (
    "k-NN",
    "linear probe",
    "grid probe",
    "fine-tuned",
    "few-shot",
)
METHODS = (KNN, LINEAR, GRID, FINE_TUNED)  # of which a candidate's whole set is predicted
