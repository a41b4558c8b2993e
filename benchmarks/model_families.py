"""Every family of timm in every use: which work, and which are refused in words.

One small member of each family, with random weights, is tried as a teacher whose features are taken
(by timm's own pooling, compared with timm itself), as a teacher of the default objective, and as a
student of masked image modelling. Each use works, or is refused with a message before anything is
computed; anything else is a failure, and the exit code is 1.

    python benchmarks/model_families.py [--family NAME ...] [--build] [--json]

--build builds every model and objective without numbers and computes nothing.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable

import numpy as np
import timm
import torch
from machine import describe_machine

from echostill.distill.objective.core import DistillationObjective
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.platform.errors import UsageError
from echostill.platform.masking.masks import MaskSettings, apply_spatial, draw_masks
from echostill.platform.masking.mim import MaskedImageModel
from echostill.platform.models import create_encoder

STUDENT, STUDENT_SIDE = "tinyusfm-micro", 128
IMAGES = 2

# The smallest member of each family, by the module of timm that defines it.
FAMILIES = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "mobileone_s1",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_zepto_rms",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "efficientnet_b0",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "eva02_tiny_patch14_224",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "coatnet_pico_rw_224",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "lcnet_035",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xcit": "xcit_nano_12_p16_224",
    "xception_aligned": "xception41p",
}

Use = Callable[[str, bool], str]


def features(name: str, build: bool) -> str:
    """Take features with timm's own pooling; they must be timm's."""
    encoder = create_encoder(name, pooling="timm").eval()
    if not build:
        pixels = torch.rand(1, 3, encoder.image_size, encoder.image_size)
        with torch.no_grad():
            given = encoder(pixels, encoder.third_layers()).pooled
            backbone = encoder.backbone
            own = backbone.forward_features(encoder.normalise(pixels))
            expected = backbone.forward_head(own, pre_logits=True)
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
    return f"{encoder.feature_dim} numbers"


def teacher(name: str, build: bool) -> str:
    """Follow it with a small student of another size, by the default objective."""
    followed = create_encoder(name, pooling="timm")
    student = MaskedImageModel(create_encoder(STUDENT, image_size=STUDENT_SIDE))
    objective = DistillationObjective(student, followed, ObjectiveSettings())
    blocks = [followed.layer(layer) for layer in followed.third_layers()]
    if not build:
        _step(objective, student)
    return ", ".join(f"{each.dim} on {each.grid[0]} x {each.grid[1]}" for each in blocks)


def student(name: str, build: bool) -> str:
    """Train it by masked image modelling."""
    model = MaskedImageModel(create_encoder(name))
    encoder = model.encoder
    if not build:
        masks = _masks(encoder.image_size, encoder.patch_size)
        pixels = torch.rand(IMAGES, 3, encoder.image_size, encoder.image_size)
        prediction = model.eval()(apply_spatial(pixels, masks.spatial)).prediction
        loss = prediction.square().mean()
        loss.backward()
        assert torch.isfinite(loss), "the loss is not finite"
    return f"{encoder.grid[0]} x {encoder.grid[1]} patches of {encoder.patch_size}"


def _step(objective: DistillationObjective, student: MaskedImageModel) -> None:
    side, patch = student.encoder.image_size, student.patch_size
    pixels, masks = torch.rand(IMAGES, 3, side, side), _masks(side, patch)
    output = objective(pixels, objective.views(pixels, masks), masks)
    output.loss.backward()
    assert torch.isfinite(output.loss), "the loss is not finite"
    assert student.encoder.backbone.cls_token.grad.abs().sum() > 0, "no gradient"


def _masks(side: int, patch: int):
    settings = MaskSettings().scaled_to(side, patch)
    return draw_masks(
        settings, 0, np.zeros(IMAGES, dtype=np.int64), [str(k) for k in range(IMAGES)]
    )


USES: dict[str, Use] = {"features": features, "teacher": teacher, "student": student}


def try_family(name: str, *, build: bool) -> dict[str, str]:
    """Try a model of timm in every use; say what came of each."""
    found = {}
    for use, attempt in USES.items():
        torch.manual_seed(0)
        try:
            if build:
                with torch.device("meta"):
                    found[use] = f"works: {attempt(f'timm:{name}', True)}"
            else:
                found[use] = f"works: {attempt(f'timm:{name}', False)}"
        except UsageError as error:
            found[use] = f"refused: {error}"
        except Exception as error:  # what must not happen
            found[use] = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", action="append", choices=sorted(FAMILIES))
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    started = time.perf_counter()
    rows = {}
    for family in options.family or FAMILIES:
        name = FAMILIES[family]
        if not timm.is_model(name):  # another version of timm
            continue
        rows[family] = {"model": name, **try_family(name, build=options.build)}
        if not options.json:
            print(f"{family:<24}{name}")
            for use in USES:
                print(f"    {use:<10}{rows[family][use]}", flush=True)
    counts = {
        use: {
            state: sum(row[use].startswith(state) for row in rows.values())
            for state in ("works", "refused", "FAILED")
        }
        for use in USES
    }
    result = {
        "machine": describe_machine(),
        "timm": timm.__version__,
        "families": len(rows),
        "computed": not options.build,
        "counts": counts,
        "seconds": round(time.perf_counter() - started),
    }
    print(json.dumps({**result, "rows": rows} if options.json else result, indent=None))
    return 1 if any(count["FAILED"] for count in counts.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
