"""Recipes: functions that return a full config.

Add one to a file here and to `RECIPES`, and it is a word of the command line.
"""

from sat_ray.sweep.config import Recipe
from sat_ray.sweep.recipes.cifar10 import cifar10_resnet18, cifar10_wrn28_10_extra
from sat_ray.sweep.recipes.digits import digits, digits_smoke, study
from sat_ray.sweep.recipes.fashion_mnist import fashion_mnist, fashion_mnist_resnet18
from sat_ray.sweep.recipes.imagenet import (
    imagenet_convnext_tiny,
    imagenet_resnet50,
    imagenet_vit_small,
)
from sat_ray.sweep.recipes.imagenet_ladder import ladder

DEFAULT = "digits"
_OWN = (
    digits,
    digits_smoke,
    study,
    fashion_mnist,
    fashion_mnist_resnet18,
    cifar10_resnet18,
    cifar10_wrn28_10_extra,
    imagenet_resnet50,
    imagenet_convnext_tiny,
    imagenet_vit_small,
)
RECIPES: dict[str, Recipe] = {recipe.__name__: recipe for recipe in _OWN} | ladder(
    imagenet_resnet50
)
