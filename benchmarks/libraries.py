"""The PGD of other libraries behind one call: attack(x, y) -> x_adv, from the clean image, so that all share their starts.

Each gets a model of its own, in inference mode and otherwise as `load_model` returns it, and is used as its documentation shows.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sat_ray.attacks import AttackSpec

Library = Callable[[Tensor, Tensor], Tensor]


def torchattacks_pgd(model: nn.Module, spec: AttackSpec) -> Library:
    """Build torchattacks' PGD."""
    import torchattacks

    attack = torchattacks.PGD(model, eps=spec.threat_model.epsilon, alpha=spec.step_size, steps=spec.steps, random_start=False)
    return lambda x, y: attack(x, y)


def foolbox_pgd(model: nn.Module, spec: AttackSpec) -> Library:
    """Build foolbox's LinfPGD."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=spec.step_size, steps=spec.steps, random_start=False)
    return lambda x, y: attack(wrapped, x, y, epsilons=spec.threat_model.epsilon)[1]


def art_pgd(model: nn.Module, spec: AttackSpec) -> Library:
    """Build ART's ProjectedGradientDescent."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    shape, classes = (3, 32, 32), 10
    wrapped = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, classes, clip_values=(0.0, 1.0), device_type="cpu")
    attack = ProjectedGradientDescent(
        wrapped,
        eps=spec.threat_model.epsilon,
        eps_step=spec.step_size,
        max_iter=spec.steps,
        num_random_init=0,
        batch_size=64,
        verbose=False,
    )
    return lambda x, y: torch.from_numpy(attack.generate(x.numpy(), y=y.numpy()))


LIBRARIES: dict[str, Callable[[nn.Module, AttackSpec], Library]] = {
    "torchattacks": torchattacks_pgd,
    "foolbox": foolbox_pgd,
    "art": art_pgd,
}
