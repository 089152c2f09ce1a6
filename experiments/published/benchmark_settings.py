"""The timm benchmark files that profiles are fitted on, and the priors for the devices that they were measured on."""

from __future__ import annotations

from dataclasses import dataclass, field

FITTED_PER_CLASS = ("launch", "rate", "half_in", "half_out", "half_pixels", "bandwidth", "weight_bandwidth")
"""What is fitted for every kernel class. Launch in ms; rate in MACs per ms; `half_*` the channels or pixels at which
compute takes twice its time; bandwidths in elements per ms."""
LAUNCH, RATE, HALF_IN, HALF_OUT, HALF_PIXELS, BANDWIDTH, WEIGHT_BANDWIDTH = range(len(FITTED_PER_CLASS))

DEPTHWISE = ("conv_depthwise", "conv_depthwise_5", "conv_depthwise_7", "conv_depthwise_large")
ON_MATRIX_UNITS = (
    "conv_first",
    "conv_dense",
    "conv_pointwise",
    "conv_transpose",
    "linear",
    "linear_tokens",
    "matmul",
)
GPU_SHARPNESS = 2.0

# Standard deviations of the logarithms of `FITTED_PER_CLASS` about their priors.
GPU_SPREAD = (0.0, 0.5, 1.0, 1.0, 0.0, 0.4, 0.0)
CPU_SPREAD = (1.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.4)
# Compute rates of kernel classes as shares of the rate of dense matrix products.
GPU_RATES = {
    "conv_first": 1 / 3,
    **dict.fromkeys(DEPTHWISE, 0.13),
    "conv_grouped": 0.5,
    "conv_transpose": 2 / 3,
    "conv_transpose_grouped": 0.1,
    "matmul": 2 / 3,
    "attention": 2 / 3,
}
CPU_RATES = dict.fromkeys((*DEPTHWISE, "conv_transpose_grouped"), 1 / 6)


@dataclass(frozen=True)
class Setting:
    """One of timm's benchmark files, and the priors for the device that it was measured on.

    Attributes:
        target: The target that was measured, in the form that `Target.parse` reads.
        file: Name of the file of measurements.
        rate: Compute rate of matrix products, in MACs per ms.
        bandwidth: Elements read or written per ms.
        weight_bandwidth: Elements of weights read per ms.
        launch_ms: Time that one kernel takes to start.
        pads: By kernel class, the number that channels (attention: tokens) are padded to a multiple of.
        spread: Standard deviations of the logarithms of `FITTED_PER_CLASS` about their priors; 0 keeps the prior.
        about: What was measured, as it is written into the profile.
        cache: Elements that the caches hold; 0 on GPUs, where batches are large.
        runtime: The runtime whose fusion rules apply.
        sharpness: Power of the soft maximum of compute and memory time.
        error: Scale that the fit expects log errors to have.
        family_weight: A model whose family has n models weighs n ** -family_weight in the fit.
        rates: Compute rates of single kernel classes, as shares of `rate`.
        check: Whether only the held-out errors are reported and no profile is made.
    """

    target: str
    file: str
    rate: float
    bandwidth: float
    weight_bandwidth: float
    launch_ms: float
    pads: dict[str, int]
    spread: tuple[float, ...]
    about: str
    cache: int = 0
    runtime: str = "torch-amp"
    sharpness: float = GPU_SHARPNESS
    error: float = 0.08
    family_weight: float = 0.3
    rates: dict[str, float] = field(default_factory=dict)
    check: bool = False

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.cache == 0


def pads_by_class(matrix: int, grouped: int, tokens: int) -> dict[str, int]:
    """By kernel class, what matrix units, grouped convolutions and attention pad to a multiple of."""
    return dict.fromkeys(ON_MATRIX_UNITS, matrix) | {"conv_grouped": grouped, "attention": tokens}


def gpu(
    name: str, file: str, speed: float, memory: float, about: str, *, compiled: bool = False, check: bool = False
) -> Setting:
    """A GPU with `speed` times the FP16 rate of an RTX 3090 and `memory` times its bandwidth (936 GB/s)."""
    return Setting(
        target=f"{name}:{'compile' if compiled else 'throughput'}",
        file=file,
        rate=30e9 * speed,
        bandwidth=0.35e9 * memory,
        weight_bandwidth=0.8e9 / 6 * memory,  # read in fp32, written and read in fp16
        launch_ms=0.005,
        pads=pads_by_class(8, 16, 64),
        spread=GPU_SPREAD,
        about=f"{'torch.compile' if compiled else 'PyTorch eager'}, AMP, {about}",
        runtime="torch-compile" if compiled else "torch-amp",
        rates=GPU_RATES,
        check=check,
    )


def cpu(name: str, file: str) -> Setting:
    """A desktop or laptop CPU with all its cores; both start from the same priors."""
    return Setting(
        target=name,
        file=file,
        runtime="torch-compile",
        rate=3e8,
        bandwidth=2.5e7,
        weight_bandwidth=7.5e6,
        launch_ms=0.006,
        pads=pads_by_class(16, 8, 64),
        spread=CPU_SPREAD,
        about="torch.compile (PyTorch 2.4), fp32, batch 1, all cores",
        cache=1_000_000,
        sharpness=1.5,
        error=0.1,
        family_weight=0.4,
        rates=CPU_RATES,
    )


SETTINGS = (
    gpu("rtx3090", "rtx3090-amp-nhwc.csv", 1.0, 1.0, "channels-last (PyTorch 2.4)"),
    gpu("rtx3090", "rtx3090-amp-nchw.csv", 1.0, 1.0, "channels-first (PyTorch 2.4)", check=True),
    gpu("rtx4090", "rtx4090-amp-nhwc.csv", 2.3, 1.08, "channels-last (PyTorch 2.4)"),
    gpu("rtx5090", "rtx5090-amp-nchw.csv", 2.9, 1.9, "channels-first (PyTorch 2.9)"),
    gpu("rtxpro6000", "rtxpro6000maxq-amp-nchw.csv", 6.2, 1.9, "channels-first (PyTorch 2.9), Max-Q"),
    gpu("rtx4090", "rtx4090-amp-compile.csv", 2.3, 1.08, "channels-first (PyTorch 2.9)", compiled=True),
    gpu("rtx5090", "rtx5090-amp-compile.csv", 2.9, 1.9, "channels-first (PyTorch 2.9)", compiled=True),
    gpu("rtxpro6000", "rtxpro6000maxq-amp-compile.csv", 6.2, 1.9, "channels-first (PyTorch 2.9), Max-Q", compiled=True),
    cpu("i7-12700h", "i7_12700h-fp32-batch1.csv"),
    cpu("i9-10940x", "i9_10940x-fp32-batch1.csv"),
)
