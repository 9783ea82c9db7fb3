"""A user-defined network, `module:function`, and the checks that it must pass before training.

The function is called as net(num_classes=K, activation=A), and with in_channels and width if it
takes them. A() makes one new activation module; there must be one per place, for a learned alpha is
one per layer. It returns an nn.Module from standardised images (N, C, H, W) float32 to logits (N,
K): `Normalized` is put in front of it, so that epsilon stays in [0, 1] pixels.
"""

import functools
import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sat_ray.activations.module import Activation
from sat_ray.models.copying import copied
from sat_ray.models.injection import REPLACED
from sat_ray.utils.import_string import call, first_line, parameters, required, resolve
from sat_ray.utils.probabilities import require_no_probabilities

OFFERED = ("num_classes", "activation", "in_channels", "width")
ALLOWED = (
    "a function net(num_classes, activation) that returns an nn.Module (it may also take "
    "in_channels and width)"
)
RANDOM_PASSES = 50  # a layer that is skipped one time in 20 is found in 92 % of the tries
WILD_WEIGHTS = 3  # draws of weights at which outputs are looked at
WILD_STD = 10.0  # of these weights
IMAGES = 4  # of the trial batch
STEP = 1e-5  # of the finite differences in float64, in standardised pixels
TOLERANCE = 1e-2  # of their result, relative


@functools.cache
def read_net(name: str, *, field: str) -> dict[str, bool]:
    """Import the function and return which of `OFFERED` it takes.

    Raises ValueError in one line where it cannot be called as described above.
    """
    what = f"{field} {name}"
    found = resolve(name, what=field)
    if not callable(found) or isinstance(found, nn.Module):
        raise ValueError(f"{what} must be {ALLOWED}, got a {type(found).__name__}")
    takes = parameters(found, what=what)
    everything = any(one.kind is one.VAR_KEYWORD for one in takes.values())
    taken = {one: one in takes or everything for one in OFFERED}
    missing = [one for one in OFFERED[:2] if not taken[one]]
    unknown = [one for one in required(takes) if one not in OFFERED]
    if missing or unknown:
        wrong = " and ".join(
            [*(f"does not take {one}" for one in missing), *(f"needs {one}" for one in unknown)]
        )
        raise ValueError(f"{what} must be {ALLOWED}; it {wrong}")
    return taken


def check_net(
    build: Callable[[int], nn.Module], *, name: str, num_classes: int, shape: tuple[int, ...]
) -> None:
    """Raise ValueError, in one line, where a network cannot be trained, attacked or evaluated.

    build: makes the whole model, [0, 1] images (N, *shape) to logits, from a seed of its weights.
    """
    what = f"model {name}"
    model = build(0)
    check_parts(model, what=what)
    x = torch.rand(IMAGES, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    _check_same_weights(model, build(0), what=what)
    _check_training(model, x, what=what)
    model.eval()
    _check_logits(model, x, num_classes=num_classes, what=what)
    _check_saved(model, build(1).eval(), x, what=what)
    _check_unbounded(model, x, what=what)
    _check_gradient(copied(model, what=what).double(), x.double(), what=what)


def check_sizes(
    model: nn.Module, *, name: str, num_classes: int, shapes: Sequence[tuple[int, ...]]
) -> None:
    """Raise ValueError, in one line, where a network cannot take smaller images too."""
    for channels, height, width in shapes:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(IMAGES, channels, height, width, generator=generator, dtype=torch.float32)
        x = x.to(next(model.parameters()).device)
        what = f"model {name}, given images of {width} x {height} for training.resize_start,"
        for mode in (True, False):
            logits = call(model.train(mode), x, what=what)
            if logits.shape != (IMAGES, num_classes):
                raise ValueError(
                    f"{what} must return {(IMAGES, num_classes)} logits, got "
                    f"{described(logits)}; or set resize_start to 0"
                )


def check_parts(
    model: nn.Module,
    *,
    what: str,
    remedy: str = "make a separate module for each, as a learned alpha needs it",
) -> None:
    """Raise ValueError, in one line, where a network has a part that cannot be trained as it is.

    remedy: what to do about modules in several places.
    """
    if any(type(one).__name__ == "OptimizedModule" for one in model.modules()):
        raise ValueError(
            f"{what} must be a network that is not compiled; return it without torch.compile and "
            "set training.compile to True"
        )
    for path, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"{what} has a lazy layer ({path} has no size yet); give every layer its size "
                "(in_channels is an argument of the function), or call the network on a batch of "
                "zeros once before returning it"
            )
    activations = [one for one in model.modules() if isinstance(one, Activation)]
    if not activations:
        raise ValueError(
            f"{what} does not use its argument activation; call activation() wherever the sweep's "
            "activation belongs"
        )
    inside = {id(part) for one in activations for part in one.modules()}
    for path, one in model.named_modules():
        if isinstance(one, REPLACED) and id(one) not in inside:
            raise ValueError(
                f"{what} holds a {type(one).__name__} at {path} that the sweep would not vary; use "
                "activation() in its place, or the function of torch.nn.functional where it must "
                "stay"
            )
    if len(list(model.modules())) != len(list(model.named_modules(remove_duplicate=False))):
        raise ValueError(f"{what} uses one module at several places; {remedy}")

    for path, one in model.named_modules():
        for name, value in vars(one).items():
            if not name.startswith("_") and any(
                isinstance(part, nn.Module) for part in _contents(value)
            ):
                raise ValueError(
                    f"{what} keeps modules in the {type(value).__name__} {path}.{name}; use "
                    "nn.ModuleList or nn.ModuleDict"
                )


def _contents(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple, set)) else []


def _check_same_weights(model: nn.Module, other: nn.Module, *, what: str) -> None:
    ours = model.state_dict()
    theirs = other.state_dict()
    if ours.keys() != theirs.keys() or any(not torch.equal(ours[one], theirs[one]) for one in ours):
        raise ValueError(
            f"{what} starts from other weights under the same seed; draw random numbers from "
            "torch's global generator only"
        )


@torch.no_grad()
def _check_saved(model: nn.Module, other: nn.Module, x: Tensor, *, what: str) -> None:
    """Raise ValueError where the state dict lacks weights: a checkpoint would not hold them.

    other: the same network from another seed, in inference mode.
    """
    other.load_state_dict(model.state_dict())
    if not torch.equal(call(model, x, what=what), call(other, x, what=what)):
        raise ValueError(
            f"{what} gives other logits when its state dict is loaded into a new network, so it "
            "keeps weights elsewhere; make them parameters, or buffers with register_buffer "
            "(persistent)"
        )


def _check_training(model: nn.Module, x: Tensor, *, what: str) -> None:
    """Raise ValueError where a parameter gets no gradient: data-parallel training waits for it.

    A network that draws random numbers while it trains may skip a layer in some passes alone
    (stochastic depth), so it is called often.
    """
    model.train()
    before = _random_states()
    passes = [_idle_parameters(model, x, what=what)]
    if before != _random_states():
        with torch.random.fork_rng(devices=[]):
            for number in range(RANDOM_PASSES):
                torch.manual_seed(number)
                passes.append(_idle_parameters(model, x[:2], what=what))
    idle = list(dict.fromkeys(itertools.chain(*passes)))
    if any(all(name in one for one in passes) for name in idle):
        raise ValueError(
            f"{what} has parameters without a gradient ({', '.join(idle[:3])}); remove what the "
            "logits do not depend on"
        )
    if idle:
        raise ValueError(
            f"{what} leaves parameters without a gradient in some passes ({', '.join(idle[:3])}), "
            "as stochastic depth does that skips a layer; multiply the layer's output by 0 instead "
            "(torchvision.ops.StochasticDepth)"
        )


def _idle_parameters(model: nn.Module, x: Tensor, *, what: str) -> list[str]:
    """Return the names of the parameters that one pass gives no gradient."""
    model.zero_grad(set_to_none=True)
    try:
        logits = call(model, x, what=f"{what}, given float32 images of shape {tuple(x.shape)},")
    except ValueError as error:
        raise ValueError(f"{error}{other_dtype(model)}") from None
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.requires_grad:
        raise ValueError(
            f"{what} must return logits (N, K) that depend on its parameters, "
            f"got {described(logits)}"
        )
    call((logits**2).sum().backward, what=f"{what}: the backward pass")
    idle = [one for one, p in model.named_parameters() if p.requires_grad and p.grad is None]
    model.zero_grad(set_to_none=True)
    return idle


def other_dtype(model: nn.Module) -> str:
    """Return what to do where a network's parameters are not float32; "" where all are."""
    found = {one.dtype for one in model.parameters() if one.is_floating_point()} - {torch.float32}
    if not found:
        return ""
    named = " and ".join(sorted(str(one).removeprefix("torch.") for one in found))
    return f"; its parameters are {named}: call .float() on the network before you return it"


def _random_states() -> tuple[object, ...]:
    """Return the states of the generators that a network may draw from."""
    legacy = np.random.get_state(legacy=False)["state"]
    arrays = (torch.get_rng_state().tolist(), legacy["key"].tolist(), legacy["pos"])
    return (*arrays, random.getstate())


def described(value: object) -> str:
    """Say what a network returned."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _check_logits(model: nn.Module, x: Tensor, *, num_classes: int, what: str) -> None:
    with torch.no_grad():
        logits = call(model, x, what=what)
        if logits.shape != (len(x), num_classes) or logits.dtype != torch.float32:
            raise ValueError(
                f"{what} must return {(len(x), num_classes)} float32 logits, "
                f"got {described(logits)}, {logits.dtype}"
            )
        if not logits.isfinite().all():
            raise ValueError(
                f"{what} must return finite logits, got NaN or infinite ones for images of uniform "
                "noise"
            )
        require_no_probabilities(logits, what=what)
        require_same_again(logits, model(x), what=what)
        require_same_alone(torch.cat([model(one[None]) for one in x]), logits, what=what)


@torch.no_grad()
def _check_unbounded(model: nn.Module, x: Tensor, *, what: str) -> None:
    """Raise ValueError where outputs stay in [0, 1] whatever the weights are: a sigmoid's do."""
    wild = copied(model, what=what)
    generator = torch.Generator().manual_seed(0)
    for _ in range(WILD_WEIGHTS):
        for parameter in wild.parameters():
            parameter.normal_(std=WILD_STD, generator=generator)
        logits = call(wild, x, what=what)
        if not (bool((logits >= 0).all()) and bool((logits <= 1).all())):
            return
    raise ValueError(
        f"{what} returns values in [0, 1] whatever its weights are, as a sigmoid does; "
        "return logits: a sigmoid hides gradients where it is flat"
    )


def require_same_again(logits: Tensor, again: Tensor, *, what: str) -> None:
    """Raise ValueError unless two calls on the same images gave the same logits (N, K)."""
    if not torch.equal(logits, again):
        raise ValueError(
            f"{what} gives other logits the second time in inference mode; draw random numbers "
            "only while it trains"
        )


def require_same_alone(alone: Tensor, logits: Tensor, *, what: str) -> None:
    """Raise ValueError unless images alone got their logits (N, K) of a batch, up to rounding."""
    if not _same_logits(alone, logits):
        raise ValueError(
            f"{what} gives an image other logits in a batch than alone; use no statistics of the "
            "batch"
        )


def require_same_moved(moved: Tensor, logits: Tensor, *, what: str) -> None:
    """Raise ValueError unless images at other rows got their logits (N, K), up to rounding."""
    if not _same_logits(moved, logits):
        raise ValueError(
            f"{what} gives an image other logits at another row of the batch; use no noise in "
            "forward, not from a fixed seed either"
        )


def _same_logits(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether two (N, K) logits are equal up to rounding, which grows with their size."""
    varied = theirs[:, (theirs != theirs[:1]).any(dim=0)]  # a masked class has one huge number
    sizes = varied[varied != 0].abs()
    size = float(sizes.median()) if len(sizes) else 1.0
    return torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * size)


def _check_gradient(model: nn.Module, x: Tensor, *, what: str) -> None:
    """Compare the gradient at the images with central differences along it, in float64."""
    point = x.clone().requires_grad_(True)
    logits = call(model, point, what=f"{what}, in float64,")
    weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype)
    try:
        (slope,) = torch.autograd.grad((logits * weights).sum(), point)
    except RuntimeError as error:
        raise ValueError(
            f"{what} has no gradient at its input ({first_line(error)}); remove detach and "
            "rounding from the forward pass"
        ) from None
    size = slope.flatten(1).norm(dim=1)
    if not (slope.isfinite().all() and size.all()):
        raise ValueError(
            f"{what} has a gradient of 0, NaN or infinity at an image, which no attack "
            "follow; make the forward pass differentiable"
        )
    direction = slope / size.reshape(-1, 1, 1, 1)
    with torch.no_grad():
        ahead, behind = ((model(x + h * direction) * weights).sum(dim=1) for h in (STEP, -STEP))
    measured = (ahead - behind) / (2 * STEP)
    if not torch.allclose(measured, size, rtol=TOLERANCE, atol=1e-6):
        raise ValueError(
            f"{what} has a gradient that is not its derivative: autograd says "
            f"{float(size[0]):.4g} along the steepest direction, finite differences "
            f"{float(measured[0]):.4g}; a model that hides its derivative only looks robust"
        )
