"""The paper's scaling ladder: relu against silu on larger networks and images, a recipe per rung.

A rung is the recipe `imagenet_resnet50` with another network, image size, BatchNorm group (what one
accelerator takes at a time), bf16 and one seed. What the authors' released code lists for SiLU,
clean / robust under PGD-50 in per cent, stands in each rung's help: references, not results of this
project. None of these has been run.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from sat_ray.models.architectures.sizes import SCALES
from sat_ray.sweep.config import FinalSettings, Recipe, SweepConfig


@dataclass(frozen=True)
class Rung:
    """A network of the ladder.

    pixels: of its images' sides. group: images in a BatchNorm group.
    published: clean / robust accuracy of silu.
    """

    model: str
    pixels: int
    group: int
    published: str

    @property
    def name(self) -> str:
        """Return the recipe's name."""
        of_size = "" if self.pixels == 224 or self.model in SCALES else f"_{self.pixels}"
        return f"imagenet_{self.model}{of_size}"


_EFFICIENT = {  # group, clean accuracy
    "b0": (128, 65.2),
    "b1": (128, 68.6),
    "b2": (128, 70.3),
    "b3": (64, 73.1),
    "b4": (64, 75.9),
    "b5": (32, 77.8),
    "b6": (32, 79.2),
    "b7": (16, 79.8),
    "l1": (8, 80.7),
}

RUNGS = (
    Rung("resnet50", 299, 64, "70.7 / 43.6"),
    Rung("resnet50", 380, 64, "71.6 / 43.8"),
    Rung("resnet101", 224, 128, "72.9 / 45.2"),
    Rung("resnet152", 224, 128, "74.0 / 45.8"),
    Rung("resnext50_32x4d", 224, 128, "71.1 / 42.2"),
    Rung("resnext50_32x8d", 224, 128, "73.3 / 44.8"),
    Rung("resnext152_32x8d", 380, 32, "78.0 / 51.0"),
    *(
        Rung(
            f"efficientnet_{size}",
            SCALES[f"efficientnet_{size}"][2],
            group,
            f"{clean} / not given",
        )
        for size, (group, clean) in _EFFICIENT.items()
    ),
)


def ladder(base: Callable[[], SweepConfig]) -> dict[str, Recipe]:
    """Return the recipe of every rung by its name. base: the recipe that they change."""
    return {rung.name: _recipe(rung, base) for rung in RUNGS}


def _recipe(rung: Rung, base: Callable[[], SweepConfig]) -> Recipe:
    def recipe() -> SweepConfig:
        config = base()
        return replace(
            config,
            recipe=rung.name,
            data=replace(config.data, image_size=rung.pixels),
            model=replace(config.model, name=rung.model),
            training=replace(config.training, batchnorm_group_size=rung.group, precision="bf16"),
            search=replace(config.search, activations=("relu", "silu:1"), pairs=()),
            final=FinalSettings(seeds=(0,)),
            evaluation=replace(config.evaluation, slots=rung.group),
        )

    recipe.__name__ = rung.name
    recipe.__doc__ = f"""Compare relu and silu: {rung.model}, {rung.pixels} pixels.

    One seed, which supports no claim. The authors' list for silu, clean / robust under PGD-50 in
    per cent: {rung.published}. A reference, not a result of this project.
    """
    return recipe
