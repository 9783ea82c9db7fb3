"""The adversarially trained network that attacks are compared on, and the size of a comparison."""

import hashlib
from dataclasses import asdict, dataclass, field, replace

import common
import safetensors.torch
import torch
from hardware import Hardware
from torch import Tensor

from sat_ray.attacks import AttackSpec, pgd
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.evaluation.low_precision.surrogate import make_surrogate
from sat_ray.models import Normalized
from sat_ray.threat import ThreatModel
from sat_ray.training.loop import TrainingSettings, fit


@dataclass(frozen=True)
class Size:
    """How much is measured.

    epsilon: in 255ths; trained_epsilon: of the training, where it is another; epochs,
    learning_rate, train_images: of the adversarial training; rounds: of the interleaved timing;
    batch: images of one call of a library; library_images: how many of the images, the first ones,
    the libraries get, 0 for all (their time does not depend on the images); robust: share of the
    images that the epsilon of the attack is chosen for, 0 where it is given.
    """

    width: int
    images: int
    slots: int
    steps: int = 200
    rounds: int = 1
    epsilon: int = 32
    trained_epsilon: int = 0
    epochs: int = 4
    learning_rate: float = 0.05
    train_images: int = 718
    batch: int = 64
    library_images: int = 0
    robust: float = 0.0
    hardware: Hardware = field(default_factory=Hardware)

    @property
    def compared(self) -> int:
        """Return how many images all contestants attack, the first ones."""
        return min(self.images, self.library_images or self.images)

    @property
    def excess(self) -> float:
        """Return how many times as many images sat_ray attacks as the libraries do."""
        return self.images / self.compared

    @property
    def threat_model(self) -> ThreatModel:
        """Return the ball that all attacks use."""
        return ThreatModel("linf", self.epsilon / 255)

    @property
    def trained_in(self) -> ThreatModel:
        """Return the ball that training uses."""
        return ThreatModel("linf", (self.trained_epsilon or self.epsilon) / 255)

    @property
    def spec(self) -> AttackSpec:
        """Describe the attack that all contestants run."""
        step_size = max(self.epsilon / 255 / 10, self.epsilon / 255 / self.steps)
        return AttackSpec(
            threat_model=self.threat_model,
            steps=self.steps,
            step_size=step_size,
            random_start=False,
        )


FULL = Size(width=64, images=64, slots=16, rounds=3, epsilon=40)
QUICK = Size(width=32, images=64, slots=16)
SMOKE = Size(width=8, images=16, slots=4, steps=5, epsilon=2, epochs=3, train_images=320)
GPU = Size(
    width=64,
    images=4096,
    slots=512,
    batch=256,
    library_images=768,
    trained_epsilon=16,
    epochs=20,
    learning_rate=0.1,
    robust=0.42,
)


def trained_model(size: Size, splits: dict[str, Split], *, cache: bool) -> Normalized:
    """Train the model with sat_ray's own `fit`, or read the weights that an earlier run cached."""
    about = {
        name: value
        for name, value in asdict(size).items()
        if name in ("width", "epochs", "learning_rate", "train_images")
    }
    about["epsilon"] = size.trained_in.epsilon
    if (on := size.hardware) != Hardware():
        about |= {"model": on.model, "pixels": on.pixels, "precision": on.precision}
    path = (
        common.CACHE
        / f"evaluation-{hashlib.sha256(repr(about).encode()).hexdigest()[:12]}.safetensors"
    )
    model = on.build(width=size.width)
    if cache and path.exists():
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()
    settings = TrainingSettings(
        epochs=size.epochs,
        global_batch_size=32,
        batchnorm_group_size=32,
        learning_rate=size.learning_rate,
        warmup_epochs=1,
        validate_every=size.epochs,
        precision=on.precision,
    )
    train, val = splits["train"].take(slice(0, size.train_images)), splits["val"].take(slice(0, 32))
    for report in fit(model, train, val, settings=settings, threat_model=size.trained_in):
        print(f"training epoch {report.epoch + 1}/{size.epochs}: {report.metrics}", flush=True)
    if cache:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path
        )
    return model.to(memory_format=torch.contiguous_format).eval()


def affordable(size: Size, seconds_per_image: float, *, seconds_left: float) -> Size:
    """Take as many of the images as fit into the time."""
    passes = (
        6 * size.steps * seconds_per_image
    )  # three libraries with weight gradients or more; ours thrice at a third, and calibrated
    count = next(
        (n for n in (64, 48, 40, 32, 24, 16) if n <= size.images and n * passes < seconds_left), 16
    )
    return with_images(size, count)


def with_images(size: Size, count: int) -> Size:
    """Change the number of images; with few images, fewer slots are left empty at the end."""
    return replace(size, images=count, slots=size.slots if count >= 32 else 8)


def fitting_epsilon(model: Normalized, images: Split, size: Size) -> int:
    """Return the epsilon, in 255ths, at which PGD-20 on a copy in bf16 leaves about
    `size.robust` of some images right.
    """
    sample, on = images.take(slice(0, 256)), size.hardware
    x, y = to_pixels(sample.images.to(on.place)), sample.labels.to(on.place)
    copied, low, high = make_surrogate(model, gradient="bf16", device=on.place), 0, 128
    while high - low > 1:
        epsilon = (low + high) // 2
        ball = ThreatModel("linf", epsilon / 255)
        x_adv = pgd(
            copied,
            x,
            y,
            threat_model=ball,
            step_size=ball.epsilon / 8,
            steps=20,
            random_start=False,
        )
        enough = (
            robust_share(model, x_adv, x, y, threat_model=ball, batch=size.batch) >= size.robust
        )
        low, high = (epsilon, high) if enough else (low, epsilon)
    return max(low, 1)


@torch.no_grad()
def robust_share(
    model: Normalized, x_adv: Tensor, x: Tensor, y: Tensor, *, threat_model: ThreatModel, batch: int
) -> float:
    """Return the robust share of points in float32; AssertionError on an infeasible point."""
    assert bool(threat_model.contains(x_adv, x).all()), "a library returned an infeasible point"
    correct = [
        model(part).argmax(dim=1) == labels
        for part, labels in zip(x_adv.split(batch), y.split(batch), strict=True)
    ]
    return float(torch.cat(correct).float().mean())
