"""The sizes of the networks that are made of blocks: their names can be read without torch."""

# Tan and Le 2019 (B0 to B7) and the SAT release (L1): width, depth, input pixels
SCALES: dict[str, tuple[float, float, int]] = {
    "efficientnet_b0": (1.0, 1.0, 224),
    "efficientnet_b1": (1.0, 1.1, 240),
    "efficientnet_b2": (1.1, 1.2, 260),
    "efficientnet_b3": (1.2, 1.4, 300),
    "efficientnet_b4": (1.4, 1.8, 380),
    "efficientnet_b5": (1.6, 2.2, 456),
    "efficientnet_b6": (1.8, 2.6, 528),
    "efficientnet_b7": (2.0, 3.1, 600),
    "efficientnet_l1": (3.9, 3.7, 600),
}
# channels of the first convolution, channels of each group, blocks in a group
PREACT: dict[str, tuple[int, tuple[int, ...], int]] = {
    "preact_resnet18": (64, (64, 128, 256, 512), 2),
    "wide_resnet28_10": (16, (160, 320, 640), 4),
    "wide_resnet34_10": (16, (160, 320, 640), 5),
}
