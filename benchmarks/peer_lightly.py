"""Distil with lightly-train as `peers_distill.py` asks; run by it with lightly-train's Python."""

import json
import sys


def main() -> None:
    """Train with its defaults, but for the sizes that the comparison fixes."""
    job = json.loads(sys.argv[1])
    import lightly_train
    import torch

    torch.set_num_threads(1)
    lightly_train.pretrain(
        out=job["out"],
        data=job["folder"],
        model="timm/" + job["student"],
        model_args={"img_size": job["side"]},
        method="distillation",
        method_args={
            "teacher": "dinov2/vits14-noreg-notpretrained",
            "teacher_weights": job["weights"],
        },
        epochs=job["epochs"],
        batch_size=job["batch"],
        num_workers=1,
        accelerator="cpu",
        devices=1,
        precision="32-true",
        transform_args={"image_size": (job["side"], job["side"])},
        overwrite=True,
    )


if __name__ == "__main__":
    main()
