"""Train a small network on handwritten digits, attack it and judge it, from Python.

python docs/demos/from_python.py
"""

# --8<-- [start:imports]
import numpy as np
import torch
from sklearn.datasets import load_digits

from sat_ray.attacks import AttackSpec
from sat_ray.evaluation.card import CardSettings, robustness_card
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import build_model
from sat_ray.threat import ThreatModel
from sat_ray.training import TrainingSettings, fit

Arrays = tuple[np.ndarray, np.ndarray]
# --8<-- [end:imports]


# --8<-- [start:images]
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return 1,797 images, (N, 1, 8, 8) uint8, and their labels, (N,) int64."""
    values, labels = load_digits(return_X_y=True)
    return np.rint(values * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8), labels


# --8<-- [end:images]


# --8<-- [start:train_attack_judge]
def train_attack_judge(
    train: Arrays,
    val: Arrays,
    test: Arrays,
    *,
    epochs: int = 10,
    steps: int = 200,
    settings: CardSettings,
) -> dict[str, object]:
    """Print what training, the attack and the robustness card find, and return the card."""
    ball = ThreatModel("linf", 32 / 255)
    model = build_model(
        "small_resnet",
        activation="silu",
        num_classes=10,
        in_channels=1,
        width=8,
        mean=(0.3,),
        std=(0.35,),
    )
    training = TrainingSettings(epochs=epochs)
    for report in fit(model, train, val, settings=training, threat_model=ball):
        print(f"epoch {report.epoch + 1}: loss {report.metrics['train/loss']:.2f}")

    # the model is now in eval mode and holds the best weights found in validation
    images, labels = test
    attack = AttackSpec(threat_model=ball, steps=steps, step_size=4 / 255)
    outcomes = evaluate(model, images, labels, np.arange(len(images)), attacks=[attack])
    robust = len(robust_image_ids(outcomes)) / len(images)
    print(f"robust accuracy under {attack}: {robust:.1%} of {len(images)} test images")

    card = robustness_card(model, val, attack=attack, settings=settings)
    print(card["verdict"], *card["reasons"], sep="\n")
    return card


# --8<-- [end:train_attack_judge]


# --8<-- [start:main]
def main() -> None:
    """Train on the first images, validate and judge on the next, test on the last."""
    torch.set_num_threads(1)  # threads slow down calls on images as small as these
    images, labels = digits()
    train = images[:1000], labels[:1000]
    val = images[1000:1200], labels[1000:1200]
    test = images[1200:1500], labels[1200:1500]
    train_attack_judge(train, val, test, settings=CardSettings(images=60))


if __name__ == "__main__":
    main()
# --8<-- [end:main]
