"""The models of torchvision and timm that the zoo compiles: small ones of each family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """One model and what it takes."""

    name: str
    """As its library's registry knows it."""
    size: int = 64
    """Height and width of the input, in pixels."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of its constructor."""
    frames: int = 0
    """Length of the input, for video."""
    images: int = 1
    """Number of inputs."""

    def __str__(self) -> str:
        return self.name


_NO_BACKBONE = {"weights_backbone": None}

TORCHVISION = (
    Family("alexnet"),
    Family("vgg11_bn", 32),
    Family("googlenet", options={"init_weights": True}),
    Family("inception_v3", 96, {"init_weights": True}),
    Family("resnet18"),
    Family("resnext50_32x4d"),
    Family("densenet121"),
    Family("squeezenet1_1"),
    Family("shufflenet_v2_x0_5"),
    Family("mobilenet_v2"),
    Family("mobilenet_v3_small"),
    Family("mnasnet0_5"),
    Family("regnet_y_400mf"),
    Family("efficientnet_b0"),
    Family("convnext_tiny"),
    Family("vit_b_32", 64, {"image_size": 64}),
    Family("swin_t"),
    Family("swin_v2_t"),
    Family("fcn_resnet50", options=_NO_BACKBONE),
    Family("deeplabv3_mobilenet_v3_large", options=_NO_BACKBONE),
    Family("lraspp_mobilenet_v3_large", options=_NO_BACKBONE),
    Family("r3d_18", 32, frames=4),
    Family("mc3_18", 32, frames=4),
    Family("r2plus1d_18", 32, frames=4),
    Family("swin3d_t", 32, frames=4),
    Family("raft_small", 128, images=2),
)

_TIMM = {
    "": """
        caformer_s18 cait_xxs24_224 coat_lite_tiny convit_tiny convmixer_768_32 convnextv2_atto
        cpubone_nano cs3darknet_focus_s deit_tiny_distilled_patch16_224 dla46x_c dpn48b
        edgenext_xx_small efficientformerv2_s0 efficientnet_b0_gn efficientvim_m1
        efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 gmixer_12_224 gmlp_ti16_224
        hardcorenas_a hgnetv2_b0 hrnet_w18_small iformer_t inception_next_atto lcnetv2_small
        legacy_seresnet18 lowformer_b0 mixer_s32_224 mobilenetv3_small_050
        mobilenetv4_conv_small_035 mobileone_s0 mobilevit_xxs mobilevitv2_050 nf_ecaresnet26
        poolformerv2_s12 pvt_v2_b0 pvt_v2_b2_li regnetz_005 repghostnet_050 repvit_m0_9
        resmlp_12_224 resnest14d resnetblur18 rexnetr_100 shvit_s1 skresnet18 starnet_s050
        swiftformer_xs swin_tiny_patch4_window7_224 test_byobnet test_coatnet test_convnext
        test_efficientnet test_mambaout test_maxvit test_nfnet test_vit test_vit_relpos
        tf_mixnet_s tiny_vit_5m_224 twins_svt_small vit_tiny_r_s16_p8_224 vovnet39a
        xcit_nano_12_p16_224
    """,
    "224": "efficientformer_l1 levit_128s pit_ti_224 visformer_tiny",
    "256": "botnet26t_256 halonet_h1 lambda_resnet26rpt_256",
    "240": "crossvit_tiny_240",
}
TIMM = tuple(
    Family(name, int(size or 64)) for size, names in _TIMM.items() for name in names.split()
)
