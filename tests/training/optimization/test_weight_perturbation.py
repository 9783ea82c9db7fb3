"""Adversarial weight perturbation against its formula: of layers, of one step, in a training."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainings import assert_same_bits, small_model, train

from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.training.epoch_metrics import Totals
from sat_ray.training.objectives import AdversarialCrossEntropy
from sat_ray.training.optimization.weight_perturbation import WeightPerturbation
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.settings import TrainingSettings
from sat_ray.training.train_step import TrainStep

GAMMA = 0.01


def totals() -> Totals:
    """Return sums of an epoch that begins."""
    return Totals((0.0, 0.0, 0.0), device=torch.device("cpu"), process_group=ProcessGroup())


def step_of(model: nn.Module, *, images: int, **changes: object) -> TrainStep:
    """Return the train step of a model on one group of images, without momentum."""
    settings = TrainingSettings(
        global_batch_size=images, batchnorm_group_size=images, momentum=0.0, **changes
    )
    return TrainStep(model, AdversarialCrossEntropy(), settings, process_group=ProcessGroup())


def test_each_layer_moves_along_its_gradient_by_gamma_times_its_norm_and_back_bit_for_bit(
    digits: Split,
) -> None:
    model = small_model("smoothrelu_learned").train()
    few = digits.take(slice(0, 32))
    F.cross_entropy(model(to_pixels(few.images)), few.labels).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    perturbation = WeightPerturbation(model, gamma=GAMMA)
    perturbation.add()
    matrices = 0
    for name, parameter in model.named_parameters():
        v = parameter.detach().double() - before[name].double()
        if parameter.dim() < 2:
            assert not bool(v.any()), name
            continue
        matrices += 1
        assert parameter.grad is not None
        length = before[name].double().norm()
        assert v.norm().item() == pytest.approx(GAMMA * length.item(), rel=1e-4), name
        cosine = F.cosine_similarity(v.flatten(), parameter.grad.double().flatten(), dim=0)
        assert cosine > 1 - 1e-6, name
    assert matrices == len(perturbation.weights) > 5
    perturbation.remove()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_layer_without_gradient_or_with_a_gradient_of_0_stays() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[1].weight.grad = torch.zeros(2, 4)
    before = [p.detach().clone() for p in model.parameters()]
    perturbation = WeightPerturbation(model, gamma=GAMMA)
    perturbation.add()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    perturbation.remove()


def gradient_by_hand(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the mean cross-entropy of logits w x: (softmax - one-hot)' x / N."""
    z = x @ w.T
    p = (z - z.amax(1, keepdim=True)).exp()
    p = p / p.sum(1, keepdim=True)
    for row, label in enumerate(y.tolist()):
        p[row, label] -= 1
    return p.T @ x / len(x)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_one_step_on_a_linear_model_is_the_closed_form(gamma: float) -> None:
    """w' = (1 - lr d) w - lr grad L(w + gamma |w| g / |g|): the decay d acts on w itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3, bias=False))
    x = torch.rand(8, 1, 2, 3)
    y = torch.randint(3, (8,))
    w = model[1].weight.detach().double()
    flat = x.flatten(1).double()
    g = gradient_by_hand(w, flat, y)
    v = gamma * w.norm() * g / g.norm()
    expected = (1 - 0.5 * 0.1) * w - 0.5 * gradient_by_hand(w + v, flat, y)
    train_step = step_of(model, images=8, awp_gamma=gamma, weight_decay=0.1)
    train_step.update([(x, x, y)], totals(), learning_rate=0.5, step=0, number=0)
    torch.testing.assert_close(model[1].weight.detach().double(), expected, rtol=0, atol=1e-6)


def test_running_statistics_are_updated_once_by_the_pass_at_the_perturbed_weights(
    digits: Split,
) -> None:
    few = digits.take(slice(0, 32))
    x = to_pixels(few.images)
    model = small_model().train()
    reference = small_model().train()
    untouched = {name: value.clone() for name, value in reference.state_dict().items()}
    loss = F.cross_entropy(reference(x), few.labels)
    loss.backward()
    reference.load_state_dict(untouched)
    WeightPerturbation(reference, gamma=GAMMA).add()
    reference(x)
    train_step = step_of(model, images=32, awp_gamma=GAMMA)
    train_step.update([(x, x, few.labels)], totals(), learning_rate=0.1, step=0, number=0)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, reference.get_buffer(name), msg=name)
    assert int(model.get_buffer("body.bn1.num_batches_tracked")) == 1
    plain = small_model().train()
    plain(x)
    name = "body.layer1.bn1.running_var"
    assert not torch.equal(plain.get_buffer(name), model.get_buffer(name))


def test_without_a_share_of_the_epochs_nothing_changes_and_with_one_only_what_follows(
    digits: Split,
) -> None:
    plain = train(small_model(), digits)
    never = train(small_model(), digits, awp_gamma=GAMMA, awp_start=1.0)
    assert_same_bits(plain[-1].state, never[-1].state)
    half = train(small_model(), digits, awp_gamma=GAMMA, awp_start=0.5)
    same = [
        one.metrics["train/loss"] == other.metrics["train/loss"]
        for one, other in zip(plain, half, strict=True)
    ]
    assert same == [True, False]


def test_perturbed_training_finds_weights_whose_loss_rises_less_under_perturbation(
    digits: Split,
) -> None:
    """The loss of held-out images at the last weights, then at the same weights perturbed."""
    held_out = digits.take(slice(1000, 1200))
    x = to_pixels(held_out.images)
    rise = {}
    for gamma in (0.0, 0.05):
        model = small_model()
        train(model, digits, images=192, epochs=4, awp_gamma=gamma)
        model.eval()
        loss = F.cross_entropy(model(x), held_out.labels)
        loss.backward()
        WeightPerturbation(model, gamma=0.05).add()
        rise[gamma] = (F.cross_entropy(model(x), held_out.labels) - loss).item()
    assert 0 < rise[0.05] < rise[0.0]
