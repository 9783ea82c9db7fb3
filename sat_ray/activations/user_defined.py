"""An activation of the user's own, `module:function`: how it is read, and what it must be before anything is trained with it.

A function of one tensor, f(x) or f(x, alpha=...), or a class (or function without arguments) that makes such an nn.Module. It must act on
each element alone, always alike, stay finite, and have the derivative that autograd says it has: g(x) = (f(x + h) - f(x - h)) / 2h. A
backward pass of its own choice would make a model look robust that is not.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sat_ray.utils.import_string import call, first_line, parameters, required, resolve

LARGE = (
    -100.0,
    -50.0,
    -20.0,
    20.0,
    50.0,
    100.0,
)  # inputs at which it must be finite, beside [-8, 8]
STEP, TOLERANCE = 1e-5, 1e-3
KINK, MOST_KINKS = (
    1e-2,
    0.05,
)  # a larger difference of the one-sided derivatives is a kink; the share of points that may have one
DIVISIONS = 10  # of the cells in which the largest curvature is searched
PARTS = 8  # of a cell that is divided
STEEPEST = 64  # cells that are divided
NARROW = 1e-8  # width of a cell that is divided no more
JUMP = 0.02  # change of the slope within a narrow cell that is a kink
ALLOWED = "a function f(x) or f(x, alpha=1.0) of one tensor, or a class of nn.Module made without arguments or with alpha=1.0"


@dataclass(frozen=True)
class UserDefinedActivation:
    """What `module:function` turned out to be. function: f(x, alpha), or make: alpha -> module.

    default: of alpha, None where it takes none.
    """

    name: str
    function: Callable[[Tensor, Any], Tensor] | None
    make: Callable[[float | None], nn.Module] | None
    default: float | None
    grid: tuple[float, ...]
    about: str

    def apply(self, x: Tensor, alpha: Any) -> Tensor:
        """Apply it to a tensor; a module is made for it, in the tensor's dtype."""
        return (
            self.function(x, alpha)
            if self.function is not None
            else self.module(alpha).to(x.dtype)(x)
        )

    def slope(self, x: Tensor, alpha: Any) -> Tensor:
        """Return its derivative at x, by autograd."""
        point = x.detach().clone().requires_grad_(True)
        return torch.autograd.grad(self.apply(point, alpha).sum(), point)[0]

    def module(self, alpha: float | None) -> nn.Module:
        """Make its module, the same each time, without touching torch's generator; ValueError where that is none."""
        assert self.make is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = call(self.make, alpha, what=f"activation {self.name}: making it")
        if not isinstance(made, nn.Module):
            raise ValueError(
                f"activation {self.name} made a {type(made).__name__}; allowed: {ALLOWED}"
            )
        return made


def read_activation(text: str) -> UserDefinedActivation:
    """Import `module:function` and see how it is to be called. alphas: an attribute of it with the values that a search tries."""
    found = resolve(text, what="activation")
    what = f"activation {text}"
    if not callable(found) or isinstance(found, nn.Module):
        raise ValueError(f"{what} is a {type(found).__name__}; allowed: {ALLOWED}")
    takes = parameters(found, what=what)
    needed = [name for name in required(takes) if name != "alpha"]
    is_function = len(needed) == 1 and not isinstance(found, type)
    if needed and not is_function:
        raise ValueError(f"{what} needs {', '.join(needed)}; allowed: {ALLOWED}")
    default, grid = _alphas(found, takes, what=what)
    if is_function:
        function = (
            (lambda x, alpha: found(x))
            if default is None
            else (lambda x, alpha: found(x, alpha=alpha))
        )
        return UserDefinedActivation(text, function, None, default, grid, _about(found))
    make = (lambda alpha: found()) if default is None else (lambda alpha: found(alpha=alpha))
    return UserDefinedActivation(text, None, make, default, grid, _about(found))


def _alphas(
    found: Any, takes: dict[str, Any], *, what: str
) -> tuple[float | None, tuple[float, ...]]:
    given = getattr(found, "alphas", ())
    if "alpha" not in takes:
        if given:
            raise ValueError(
                f"{what} has alphas {given} but takes no alpha; allowed: a parameter alpha=1.0, or no alphas"
            )
        return None, ()
    default = takes["alpha"].default
    try:
        grid = tuple(float(alpha) for alpha in given)
        default = float(default)
    except (TypeError, ValueError):
        raise ValueError(
            f"{what} has alpha={default!r} and alphas {given!r}; allowed: numbers, for example alpha: float = 1.0"
        ) from None
    return default, grid or (default,)


def _about(found: Any) -> str:
    return next(iter((found.__doc__ or "").strip().splitlines()), "") or "your own"


def check_activation(user_defined: UserDefinedActivation, alpha: float | None) -> None:
    """Raise ValueError, in one line, where the activation is not an elementwise, finite function with the derivative that it claims."""
    what = f"activation {user_defined.name}" + ("" if alpha is None else f" at alpha={alpha:g}")
    module = user_defined.module(alpha) if user_defined.make is not None else None
    double = copy.deepcopy(module).double() if module is not None else None
    middle = torch.linspace(-8, 8, 834, dtype=torch.float32) + 1 / 977
    x = torch.cat([middle, torch.tensor(LARGE, dtype=torch.float32)]).reshape(4, 5, 6, 7)
    _check_value(module or (lambda x: user_defined.apply(x, alpha)), x, what=what)
    if module is not None and not _same_state(module, user_defined.module(alpha)):
        raise ValueError(
            f"{what} changes its own state when it is called; allowed: no running statistics"
        )
    _check_slope(double or (lambda x: user_defined.apply(x, alpha)), x.double(), what=what)


def _same_state(module: nn.Module, fresh: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(module.state_dict().values(), fresh.state_dict().values(), strict=True)
    )


def _check_value(apply: Callable[[Tensor], Tensor], x: Tensor, *, what: str) -> None:
    before = x.clone()
    y = _called(apply, x, what=what)
    if not torch.equal(x, before):
        raise ValueError(
            f"{what} changes its input in place; allowed: a new tensor, without inplace=True"
        )
    if not y.isfinite().all():
        raise ValueError(
            f"{what} is {float(y[~y.isfinite()][0])} at x = {_first(x, ~y.isfinite()):g}; allowed: finite for |x| <= 100"
        )
    if not torch.equal(y, _called(apply, x, what=what)):
        raise ValueError(
            f"{what} gives other values the second time; allowed: no dropout, no noise"
        )
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))
    shuffled = _called(apply, x.flatten()[order].reshape(x.shape), what=what)
    if not torch.allclose(shuffled, y.flatten()[order].reshape(x.shape), rtol=1e-4, atol=1e-5):
        raise ValueError(
            f"{what} does not act on each element alone; allowed: no softmax, no statistics of the batch or of channels"
        )


def _called(apply: Callable[[Tensor], Tensor], x: Tensor, *, what: str) -> Tensor:
    y = call(
        apply, x, what=f"{what}, given {x.dtype} of shape {tuple(x.shape)},".replace("torch.", "")
    )
    if not isinstance(y, Tensor):
        raise ValueError(
            f"{what} returned a {type(y).__name__}; allowed: a tensor of its input's shape and dtype"
        )
    if y.shape != x.shape or y.dtype != x.dtype:
        got, wanted = (f"{tuple(one.shape)} {one.dtype}".replace("torch.", "") for one in (y, x))
        raise ValueError(
            f"{what} returned {got} for {wanted}; allowed: its input's shape and dtype"
        )
    return y


def _check_slope(apply: Callable[[Tensor], Tensor], x: Tensor, *, what: str) -> None:
    """Compare autograd's derivative with central differences in float64, but at kinks."""
    point = x.clone().requires_grad_(True)
    value = _called(apply, point, what=what)
    try:
        (slope,) = torch.autograd.grad(value.sum(), point)
    except RuntimeError as error:
        raise ValueError(
            f"{what} has no gradient ({first_line(error)}); allowed: torch operations, without detach or no_grad"
        ) from None
    if not slope.isfinite().all():
        raise ValueError(
            f"{what} has a gradient of {float(slope[~slope.isfinite()][0])} at x = {_first(x, ~slope.isfinite()):g}"
        )
    if not slope.any():
        raise ValueError(
            f"{what} has a gradient of 0 everywhere: nothing could be trained through it, and no attack could find its way"
        )
    with torch.no_grad():
        ahead, here, behind = (_called(apply, x + h, what=what) for h in (STEP, 0.0, -STEP))
    measured, left, right = (
        (ahead - behind) / (2 * STEP),
        (here - behind) / STEP,
        (ahead - here) / STEP,
    )
    kinks = (left - right).abs() > KINK * (1 + measured.abs())
    if kinks.double().mean() > MOST_KINKS:
        raise ValueError(
            f"{what} jumps or bends at {int(kinks.sum())} of {x.numel()} points; allowed: a derivative almost everywhere"
        )
    wrong = ~kinks & ((slope - measured).abs() > TOLERANCE * (1 + measured.abs()))
    if wrong.any():
        raise ValueError(
            f"{what} has a gradient that is not its derivative: at x = {_first(x, wrong):g} autograd says {float(slope[wrong][0]):.4g}, "
            f"finite differences {float(measured[wrong][0]):.4g}; a model that hides its derivative only looks robust"
        )


def measured_curvature(user_defined: UserDefinedActivation, alpha: float | None) -> float:
    """Return max |f''| of a user's activation on [-100, 100]: inf at a kink, nan without a slope.

    The steepest cells of a grid that is dense around 0 are divided until they are narrow. Where the
    slope still changes by more than JUMP inside one of them, the derivative jumps.
    """
    around = torch.logspace(-6, 2, 1001, dtype=torch.float64)
    edges = torch.cat([-around.flip(0), torch.zeros(1, dtype=torch.float64), around])
    left, right = edges[:-1], edges[1:]
    change = torch.zeros_like(left)
    bend = torch.zeros_like(left)
    for _ in range(DIVISIONS):
        change = (user_defined.slope(right, alpha) - user_defined.slope(left, alpha)).abs()
        bend = change / (right - left)
        if not bend.isfinite().all():
            return math.nan
        steep = torch.zeros_like(change, dtype=torch.bool)
        steep[bend.topk(STEEPEST).indices] = True
        steep[change.topk(STEEPEST).indices] = True
        left, right = _divided(left[steep], right[steep])
    return math.inf if float(change.max()) > JUMP else float(bend.max())


def _divided(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Cut each cell into PARTS, except narrow ones, which would show rounding alone."""
    wide = right - left > NARROW
    share = torch.linspace(0, 1, PARTS + 1, dtype=left.dtype)
    edges = left[wide, None] + (right - left)[wide, None] * share
    parts = edges[:, :-1].flatten(), edges[:, 1:].flatten()
    return torch.cat([left[~wide], parts[0]]), torch.cat([right[~wide], parts[1]])


def _first(x: Tensor, where: Tensor) -> float:
    value = float(x[where][0])
    return value if math.isfinite(value) else 0.0
