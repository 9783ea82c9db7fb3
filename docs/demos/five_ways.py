"""Five ways in which a robust accuracy comes out too high, each shown beside the truth in seconds.

python docs/demos/five_ways.py
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sat_ray.attacks import AttackSpec
from sat_ray.attacks.losses import cross_entropy
from sat_ray.data.pixels import to_pixels
from sat_ray.data.sources.registry import dataset_source
from sat_ray.data.split import Split
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import Normalized, build_model
from sat_ray.threat import ThreatModel
from sat_ray.training import TrainingSettings, fit

BALL = ThreatModel("linf", 40 / 255)
STEPS, STEP_SIZE = 100, 4 / 255


def truth(model: nn.Module, split: Split, *, loss: str = "cross_entropy") -> float:
    """Return the robust accuracy that sat_ray measures.

    The model is in inference mode, and every image and every visited point count.
    """
    attack = AttackSpec(threat_model=BALL, steps=STEPS, step_size=STEP_SIZE, loss=loss)
    table = evaluate(model, split.images, split.labels, split.image_ids, attacks=[attack])
    return len(robust_image_ids(table)) / len(split)


def textbook_pgd(
    model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float, steps: int, step_size: float
) -> Tensor:
    """Return the last iterate of the ten lines that every paper's appendix has."""
    torch.manual_seed(0)
    x_adv = x + epsilon * (2 * torch.rand_like(x) - 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(x_adv), y).sum(), x_adv)
        x_adv = x_adv.detach() + step_size * gradient.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, x - epsilon), x + epsilon).clamp(0, 1)
    return x_adv.detach()


def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Say for each image whether it is classified correctly."""
    with torch.no_grad():
        return model(x).argmax(dim=1) == y


# --8<-- [start:train_mode]
def train_mode(model: Normalized, split: Split) -> tuple[float, float]:
    """Attack while BatchNorm normalises by the batch.

    The gradient is that of another model than the one that is shipped.
    """
    x, y = to_pixels(split.images), split.labels
    x_adv = textbook_pgd(
        copy.deepcopy(model).train(), x, y, epsilon=BALL.epsilon, steps=STEPS, step_size=STEP_SIZE
    )
    return right(model, x_adv, y).float().mean().item(), truth(model, split)


# --8<-- [end:train_mode]


# --8<-- [start:saturated_logits]
class Confident(nn.Module):
    """Multiply the logits by a thousand, which changes no prediction.

    Softmax saturates, and the gradient of the cross-entropy is exactly 0.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        return 1000 * self.model(x)


def saturated_logits(model: Normalized, split: Split) -> tuple[float, float]:
    """Take the loss that saturates.

    The margin of the logits has the gradient that the cross-entropy lost.
    """
    sure = Confident(model).eval()
    return truth(sure, split, loss="cross_entropy"), truth(sure, split, loss="margin")


# --8<-- [end:saturated_logits]


# --8<-- [start:too_few_steps]
def too_few_steps(model: Normalized, split: Split) -> tuple[float, float]:
    """Stop after one step, as long as it was in training."""
    x, y = to_pixels(split.images), split.labels
    x_adv = textbook_pgd(model, x, y, epsilon=BALL.epsilon, steps=1, step_size=BALL.epsilon)
    return right(model, x_adv, y).float().mean().item(), truth(model, split)


# --8<-- [end:too_few_steps]


# --8<-- [start:normalised_epsilon]
def normalised_epsilon(model: Normalized, split: Split) -> tuple[float, float]:
    """Take epsilon and the steps behind the normalisation.

    A ball of epsilon there is one of epsilon * std in pixels.
    """
    x, y, scale = to_pixels(split.images), split.labels, float(model.std)
    x_adv = textbook_pgd(
        model, x, y, epsilon=BALL.epsilon * scale, steps=STEPS, step_size=STEP_SIZE * scale
    )
    return right(model, x_adv, y).float().mean().item(), truth(model, split)


# --8<-- [end:normalised_epsilon]


# --8<-- [start:clean_errors_left_out]
def clean_errors_left_out(model: Normalized, split: Split) -> tuple[float, float]:
    """Divide by the images that were right before the attack.

    A model with a low clean accuracy is then measured on its few right images alone.
    """
    known = split.take(right(model, to_pixels(split.images), split.labels))
    return truth(model, known), truth(model, split)


# --8<-- [end:clean_errors_left_out]


WAYS: dict[str, Callable[[Normalized, Split], tuple[float, float]]] = {
    "the model is in train mode": train_mode,
    "the logits saturate the loss": saturated_logits,
    "the attack stops too early": too_few_steps,
    "epsilon is measured after normalisation": normalised_epsilon,
    "clean errors are left out": clean_errors_left_out,
}


def digits() -> tuple[Split, Split]:
    """Return 900 of scikit-learn's digits to train on and 150 others."""
    raw = dataset_source("digits").read()
    every = Split(
        torch.from_numpy(raw.images),
        torch.from_numpy(raw.labels).long(),
        torch.arange(len(raw.labels)),
    )
    return every.take(slice(0, 900)), every.take(slice(1000, 1150))


def trained(split: Split) -> Normalized:
    """Train a small network for a few epochs, adversarially."""
    model = build_model(
        "small_resnet", num_classes=10, in_channels=1, width=8, mean=(0.3,), std=(0.35,), seed=0
    )
    settings = TrainingSettings(epochs=4, warmup_epochs=1, validate_every=4, validation_steps=4)
    for _ in fit(model, split, split.take(slice(0, 32)), settings=settings, threat_model=BALL):
        pass
    return model.eval()


def main() -> None:
    """Print the five pairs."""
    torch.set_num_threads(1)
    train, others = digits()
    model = trained(train)
    print(f"robust accuracy on {len(others)} digits, {BALL}, in %{'':18} claimed  true")
    for name, demonstrate in WAYS.items():
        wrong, true = demonstrate(model, others)
        print(f"  {name:<62} {100 * wrong:7.1f} {100 * true:5.1f}")


if __name__ == "__main__":
    main()
