"""How layers are numbered for the decay of the learning rate."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from trainings import small_model

from sat_ray.activations.registry import make_activation
from sat_ray.models import Normalized, build_model
from sat_ray.training.optimization.layers import layer_scales, layers_of


class Block(nn.Module):
    """A residual block whose convolutions count as one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = make_activation("smoothrelu_learned")
        self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


class Network(nn.Module):
    """Everything that counts in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.norm = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 4, 1)
        self.act = make_activation("smoothrelu_learned")
        self.stages = nn.ModuleList(
            [nn.Sequential(Block(), Block()), nn.Sequential(Block(), nn.BatchNorm2d(4))]
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 2)


class Wrapper(nn.Module):
    """A network that is a single part of another module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Network()


EXPECTED = {
    "token": 0,
    "norm": 0,
    "stem": 0,
    "act": 0,
    "stages.0.0": 1,
    "stages.0.1": 2,
    "stages.1.0": 3,
    "stages.1.1": 3,
    "head": 4,
}


@pytest.mark.parametrize("prefix", ["", "inner.", "body.", "body.inner."])
def test_blocks_are_layers_and_norms_and_alphas_belong_to_the_layer_before(prefix: str) -> None:
    model: nn.Module = Wrapper() if "inner" in prefix else Network()
    if prefix.startswith("body"):
        model = Normalized(model, mean=(0.5,) * 3, std=(0.25,) * 3)
    found = layers_of(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, layer in found.items():
        inside = name.removeprefix(prefix)
        (part,) = [part for part in EXPECTED if inside == part or inside.startswith(f"{part}.")]
        assert layer == EXPECTED[part], name


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("small_resnet", 1 + 3 + 1),
        ("preact_resnet18", 1 + 8 + 1),
        ("resnet50", 1 + 16 + 1),
        ("efficientnet_b0", 1 + 16 + 1 + 1),
    ],
)
def test_built_in_networks_have_a_layer_per_block_and_one_each_for_stem_and_classifier(
    name: str, layers: int
) -> None:
    with torch.device("meta"):
        model = build_model(
            name, activation="silu", num_classes=3, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0
        )
    found = layers_of(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert sorted(set(found.values())) == list(range(layers))
    in_order = list(found.values())
    assert all(one <= two for one, two in pairwise(in_order))


@pytest.mark.parametrize(
    ("name", "first", "blocks"),
    [
        ("vit_tiny_patch16_224", ("cls_token", "pos_embed", "patch_embed.proj.weight"), 12),
        ("convnext_atto", ("stem.0.weight", "stem.1.weight"), 2 + 2 + 6 + 2),
    ],
)
def test_networks_of_timm_number_their_layers_themselves(
    name: str, first: tuple[str, ...], blocks: int
) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=3)
    found = layers_of(Normalized(network, mean=(0.5,) * 3, std=(0.25,) * 3))
    assert all(found[f"body.{parameter}"] == 0 for parameter in first)
    head = {layer for parameter, layer in found.items() if parameter.startswith("body.head")}
    assert max(head) == max(found.values()) >= blocks + 1


def test_the_last_layer_has_the_whole_rate_and_a_decay_of_1_scales_nothing() -> None:
    model = small_model()
    scales = layer_scales(model, decay=0.5)
    assert scales[id(model.get_parameter("body.fc.weight"))] == 1.0
    assert scales[id(model.get_parameter("body.conv1.weight"))] == 0.5**4
    assert layer_scales(model, decay=1.0) == {}


def test_a_network_of_one_layer_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        ValueError,
        match=r"training\.layer_decay must be 1 for a network of one layer, got 0\.5; put the",
    ):
        layer_scales(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), decay=0.5)
