"""Kinds of networks: families of timm's (modules that define models) that share their blocks.

A family that is left out beside its cousins is no new kind. Errors of networks of another kind are those of a kind that
is left out as a whole; forms, widths of intervals and all else that is chosen are chosen by leaving out kinds among the
others (inner folds), and a kind's own errors are looked at once, when nothing is chosen any more. The list was fixed
before the first fit by it.
"""

from __future__ import annotations

KINDS: dict[str, tuple[str, ...]] = {
    "residual bottlenecks": (
        *("resnet", "resnetv2", "senet", "sknet", "resnest", "res2net", "nfnet", "tresnet", "regnet", "dla", "hrnet"),
        *("byobnet", "byoanet"),
    ),
    "plain convolutions": ("vgg", "repvgg"),
    "concatenation": ("densenet", "dpn", "vovnet", "cspnet", "hgnet", "selecsls"),
    "branches and separable convolutions": (
        *("inception_v3", "inception_v4", "inception_resnet_v2", "nasnet", "pnasnet", "xception", "xception_aligned"),
    ),
    "inverted residuals": ("efficientnet", "mobilenetv3", "mobilenetv5", "hardcorenas", "rexnet", "ghostnet"),
    "large depthwise kernels": (
        *(
            "convnext",
            "convmixer",
            "inception_next",
            "mambaout",
            "metaformer",
            "rdnet",
            "focalnet",
            "starnet",
            "fasternet",
        ),
    ),
    "attention over all tokens": (
        *("vision_transformer", "beit", "cait", "convit", "crossvit", "naflexvit", "pit", "tnt", "volo"),
        *("vision_transformer_relpos", "vision_transformer_hybrid"),
    ),
    "attention in windows": ("swin_transformer", "gcvit", "hiera", "hieradet_sam2", "nest", "maxxvit"),
    "attention to pooled tokens": ("pvt_v2", "mvitv2", "twins"),
    "attention over channels": ("xcit", "davit", "edgenext"),
    "convolutions and attention by turns": (
        "mobilevit",
        "nextvit",
        "swiftformer",
        "shvit",
        "visformer",
        "vitamin",
        "csatv2",
    ),
    "mixing by linear layers": ("mlp_mixer", "sequencer"),
}
"""Families by their kind; models of `byobnet` that are called repvgg count as a family of their own."""


def kind_of(model: str, family: str) -> str:
    """The kind of a model of timm's, by its name and family (`timm_graphs.families`).

    Raises ValueError for a family that no kind has: it belongs into the list before anything is fitted.
    """
    family = "repvgg" if model.startswith("repvgg") else family
    for kind, known in KINDS.items():
        if family in known:
            return kind
    raise ValueError(f"{model}: family {family} is of no kind")
