"""Operations and parameters of the networks of the recipes, so that a dry run needs no torch.

`sat_ray.sweep.cost.estimate.count` counted them; a test counts them again.
"""

Network = tuple[str, str, int, tuple[int, int, int], int]
"""Name, stem and width of a network, the shape (C, H, W) of an image, and the classes."""
Counted = tuple[int, int]
"""Operations of the forward pass of one image, and the parameters."""
KNOWN: dict[Network, Counted] = {
    ("small_resnet", "imagenet", 8, (1, 8, 8), 10): (386_688, 19_810),
    ("small_resnet", "imagenet", 16, (1, 28, 28), 10): (18_691_840, 77_754),
    ("resnet18", "small", 12, (1, 28, 28), 10): (911_601_664, 11_172_810),
    ("resnet18", "small", 12, (3, 32, 32), 10): (1_110_845_440, 11_173_962),
    ("resnet50", "imagenet", 12, (3, 224, 224), 1000): (8_178_368_512, 25_557_032),
    ("resnet50", "imagenet", 12, (3, 299, 299), 1000): (15_255_336_448, 25_557_032),
    ("resnet50", "imagenet", 12, (3, 380, 380), 1000): (23_918_192_128, 25_557_032),
    ("resnet101", "imagenet", 12, (3, 224, 224), 1000): (15_602_810_880, 44_549_160),
    ("resnet152", "imagenet", 12, (3, 224, 224), 1000): (23_027_253_248, 60_192_808),
    ("resnext50_32x4d", "imagenet", 12, (3, 224, 224), 1000): (8_460_959_744, 25_028_904),
    ("resnext50_32x8d", "imagenet", 12, (3, 224, 224), 1000): (16_887_316_480, 48_021_800),
    ("resnext152_32x8d", "imagenet", 12, (3, 380, 380), 1000): (143_089_194_496, 122_372_392),
    ("efficientnet_b0", "imagenet", 12, (3, 224, 224), 1000): (771_629_504, 5_288_548),
    ("efficientnet_b1", "imagenet", 12, (3, 240, 240), 1000): (1_373_605_664, 7_794_184),
    ("efficientnet_b2", "imagenet", 12, (3, 260, 260), 1000): (1_987_123_744, 9_109_994),
    ("efficientnet_b3", "imagenet", 12, (3, 300, 300), 1000): (3_654_282_784, 12_233_232),
    ("efficientnet_b4", "imagenet", 12, (3, 380, 380), 1000): (8_787_542_048, 19_341_616),
    ("efficientnet_b5", "imagenet", 12, (3, 456, 456), 1000): (20_532_769_504, 30_389_784),
    ("efficientnet_b6", "imagenet", 12, (3, 528, 528), 1000): (38_135_187_072, 43_040_704),
    ("efficientnet_b7", "imagenet", 12, (3, 600, 600), 1000): (75_491_768_384, 66_347_960),
    ("efficientnet_l1", "imagenet", 12, (3, 600, 600), 1000): (324_018_833_248, 272_630_564),
    ("wide_resnet28_10", "imagenet", 12, (3, 32, 32), 10): (10_486_657_536, 36_479_194),
    ("timm:convnext_tiny", "imagenet", 12, (3, 224, 224), 1000): (8_911_062_528, 28_589_128),
    ("timm:vit_small_patch16_224", "imagenet", 12, (3, 224, 224), 1000): (
        9_197_764_608,
        22_050_664,
    ),
}
