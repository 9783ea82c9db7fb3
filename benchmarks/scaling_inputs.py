"""What the prediction for many GPUs takes, with ranges and where each number comes from."""

from dataclasses import dataclass

from simulation import Network


@dataclass(frozen=True)
class Input:
    """A number that the prediction takes, and its values where everything is fast or slow."""

    usual: float
    fast: float
    slow: float
    unit: str
    source: str


MEASURED = "measured on one H200 (`benchmarks/README.md`)"
HERE = "measured here, on a CPU"
VENDOR = "vendor's figure"
ASSUMED = "assumed"
UNITS = {"GB/s": 1e9, "ms": 1e-3, "µs": 1e-6}  # all others count as they are
INPUTS = {
    "training, ResNet-50 at 224 pixels, bf16": Input(
        2780, 3250, 2780, "images/s", f"{MEASURED}; fast: with `training.compile`"
    ),
    "pass of an attack, the same network, float32": Input(
        0.93, 0.93, 0.93, "ms", f"{MEASURED[:-1]}, `log.md`), for an image"
    ),
    "rates of other networks / those of the list below": Input(1, 1.3, 0.6, "", ASSUMED),
    "PGD-200: passes of an image / 201": Input(0.38, 0.38, 0.55, "", f"{MEASURED}, epsilon 31/255"),
    "PGD-200, last iterate: images attacked": Input(0.7, 0.65, 0.8, "", "the paper's accuracies"),
    "strong attacks: passes of an image / 1,010": Input(0.42, 0.35, 0.55, "", ASSUMED),
    "NVLink, one direction": Input(
        360, 450, 200, "GB/s", f"{VENDOR}, 450, of which 0.8 usable is assumed"
    ),
    "network, for each GPU": Input(
        40, 50, 12.5, "GB/s", f"{VENDOR}, 400 Gbit/s, of which 0.8 is assumed; slow: 100 Gbit/s"
    ),
    "hop in a node": Input(3, 1, 10, "µs", ASSUMED),
    "hop between nodes": Input(10, 5, 30, "µs", ASSUMED),
    "share of a backward pass that hides the exchange": Input(0.8, 1, 0.5, "", ASSUMED),
    "steps of one GPU: standard deviation / mean": Input(0.01, 0, 0.03, "", ASSUMED),
    "speeds of GPUs: standard deviation / mean": Input(0.02, 0, 0.04, "", ASSUMED),
    "decoding, on each of 8 cores of a worker": Input(1110, 1110, 800, "images/s", HERE),
    "checkpoint: copy from the GPU": Input(5, 20, 2, "GB/s", ASSUMED),
    "checkpoint: pack, sha256 and write": Input(0.3, 1, 0.1, "GB/s", ASSUMED),
    "start of the nodes, once a sweep": Input(300, 0, 900, "s", ASSUMED),
    "start of a training: workers, group, first step": Input(30, 15, 120, "s", ASSUMED),
    "start of a shard": Input(10, 3, 60, "s", ASSUMED),
}

# Rate of a network in operations per second / that of ResNet-50: images/s of training on an
# RTX 3090 with AMP and channels-last x operations (timm's repository, folder results,
# benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv). ResNeXt 32x8d: of ResNeXt-101; L1: between B7
# and L2 at 475 pixels.
RELATIVE_RATE = {
    "resnet50": 1.0,
    "resnet101": 1.17,
    "resnet152": 1.16,
    "resnext50_32x4d": 0.85,
    "resnext50_32x8d": 1.03,
    "resnext152_32x8d": 1.03,
    "efficientnet_b0": 0.136,
    "efficientnet_b1": 0.152,
    "efficientnet_b2": 0.169,
    "efficientnet_b3": 0.181,
    "efficientnet_b4": 0.213,
    "efficientnet_b5": 0.234,
    "efficientnet_b6": 0.245,
    "efficientnet_b7": 0.287,
    "efficientnet_l1": 0.33,
}


def given(name: str, case: str) -> float:
    """Return an input. case: usual, fast or slow."""
    found = INPUTS[name]
    value: float = getattr(found, case)
    return value * UNITS.get(found.unit, 1.0)


def network(case: str = "usual") -> Network:
    """Return the network of a cluster of nodes of eight GPUs."""
    return Network(
        per_node=8,
        inside=given("NVLink, one direction", case),
        between=given("network, for each GPU", case),
        inside_latency=given("hop in a node", case),
        between_latency=given("hop between nodes", case),
    )
