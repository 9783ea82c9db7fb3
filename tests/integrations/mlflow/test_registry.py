"""Names of registered models, and when a champion may be replaced."""

import pytest
from configs import changed

from sat_ray.integrations.mlflow.projection.registry import Contender, objection, registered_name
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.tasks import Dataset

DATA = Dataset(uri="", hash="0123456789abcdef", manifest={})
NEW = Contender(data="a", threat_model="linf 8/255", number=0.5, measured="pgd-200 + apgd-ce-100")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (RECIPES["digits_smoke"](), "digits-small_resnet-linf-16-255"),
        (changed("digits_smoke", model={"name": "resnet18"}), "digits-resnet18-linf-16-255"),
        (
            changed("digits_smoke", data={"dataset": "image_folder"}),
            "image_folder-01234567-small_resnet-linf-16-255",
        ),
        (
            changed("digits_smoke", threat_model={"norm": "l2", "epsilon": 0.5}),
            "digits-small_resnet-l2-0.5",
        ),
        (RECIPES["cifar10_resnet18"](), "cifar10-resnet18-linf-8-255"),
    ],
)
def test_a_registered_model_is_named_after_data_architecture_and_threat_model(
    config: SweepConfig, name: str
) -> None:
    assert registered_name(config, DATA) == name


@pytest.mark.parametrize(
    ("present", "words"),
    [
        (NEW.tags | {"sat_ray.val_robust_accuracy": "0.499999"}, ""),
        (NEW.tags, "50.0 % robust accuracy on validation"),
        (NEW.tags | {"sat_ray.val_robust_accuracy": "0.6"}, "60.0 % robust accuracy on validation"),
        (NEW.tags | {"sat_ray.dataset": "b"}, "another data"),
        (NEW.tags | {"sat_ray.threat_model": "linf 4/255"}, "another threat model"),
        (NEW.tags | {"sat_ray.val_attack": "pgd-10"}, "another validation attack"),
        ({}, "another data and another threat model and another validation attack"),
    ],
)
def test_a_champion_is_replaced_only_by_one_that_beats_it_on_the_same_data(
    present: dict[str, str], words: str
) -> None:
    found = objection(NEW, present)
    assert words in found and bool(words) == bool(found)
