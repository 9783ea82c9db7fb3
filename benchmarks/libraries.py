"""The PGD of other libraries behind one call, attack(x, y) -> x_adv.

All start from the clean image, so that they share their starts. Each gets a model of its own, in
inference mode and otherwise as `load_model` returns it, and is used as its documentation shows.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sat_ray.attacks import AttackSpec

CLASSES = 10
MOST_AT_ONCE = 10_000  # images of one call of a library; the caller splits them
Library = Callable[[Tensor, Tensor], Tensor]
Shape = tuple[int, ...]  # (C, H, W)


def torchattacks_pgd(model: nn.Module, spec: AttackSpec, shape: Shape) -> Library:
    """Build torchattacks' PGD."""
    import torchattacks

    attack = torchattacks.PGD(
        model,
        eps=spec.threat_model.epsilon,
        alpha=spec.step_size,
        steps=spec.steps,
        random_start=False,
    )
    return lambda x, y: attack(x, y)


def foolbox_pgd(model: nn.Module, spec: AttackSpec, shape: Shape) -> Library:
    """Build foolbox's LinfPGD."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    attack = foolbox.attacks.LinfPGD(
        abs_stepsize=spec.step_size, steps=spec.steps, random_start=False
    )
    return lambda x, y: attack(wrapped, x, y, epsilons=spec.threat_model.epsilon)[1]


def art_pgd(model: nn.Module, spec: AttackSpec, shape: Shape) -> Library:
    """Build ART's ProjectedGradientDescent."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    device = next(model.parameters()).device
    kind = "cpu" if device.type == "cpu" else "gpu"
    wrapped = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), shape, CLASSES, clip_values=(0.0, 1.0), device_type=kind
    )
    attack = ProjectedGradientDescent(
        wrapped,
        eps=spec.threat_model.epsilon,
        eps_step=spec.step_size,
        max_iter=spec.steps,
        num_random_init=0,
        batch_size=MOST_AT_ONCE,
        verbose=False,
    )
    return lambda x, y: torch.from_numpy(attack.generate(x.cpu().numpy(), y=y.cpu().numpy())).to(
        device
    )


LIBRARIES: dict[str, Callable[[nn.Module, AttackSpec, Shape], Library]] = {
    "torchattacks": torchattacks_pgd,
    "foolbox": foolbox_pgd,
    "art": art_pgd,
}
