"""A user-defined activation, `module:function`: reading it, and checking it before any training.

It is a function of one tensor, f(x) or f(x, alpha=...), or a class (or function without arguments)
that makes such an nn.Module. It must act on each element alone, always alike, stay finite, and have
the derivative that autograd computes: g(x) = (f(x + h) - f(x - h)) / 2h. A backward pass that is
not the derivative would make a model look robust that is not.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sat_ray.utils.import_string import call, first_line, parameters, required, resolve

# inputs at which it must be finite, beside [-8, 8]
LARGE = (-100.0, -50.0, -20.0, 20.0, 50.0, 100.0)
STEP = 1e-5
TOLERANCE = 1e-3
KINK = 1e-2  # a larger difference of the one-sided derivatives is a kink
MOST_KINKS = 0.05  # the share of points that may have a kink
DIVISIONS = 10  # of the cells in which the largest curvature is searched
PARTS = 8  # of a cell that is divided
STEEPEST = 64  # cells that are divided
NARROW = 1e-8  # width of a cell that is divided no more
JUMP = 0.02  # change of the slope within a narrow cell that is a kink
ALLOWED = (
    "a function f(x) or f(x, alpha=1.0) of one tensor, "
    "or a class of nn.Module made without arguments or with alpha=1.0"
)


@dataclass(frozen=True)
class UserDefinedActivation:
    """A user-defined activation. function: f(x, alpha), or make: alpha -> module.

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
        if self.function is not None:
            return self.function(x, alpha)
        value: Tensor = self.module(alpha).to(x.dtype)(x)
        return value

    def slope(self, x: Tensor, alpha: Any) -> Tensor:
        """Return its derivative at x, by autograd."""
        point = x.detach().clone().requires_grad_(True)
        return torch.autograd.grad(self.apply(point, alpha).sum(), point)[0]

    def module(self, alpha: float | None) -> nn.Module:
        """Make its module, the same each time, without changing torch's generator.

        Raises ValueError where the result is not a module.
        """
        assert self.make is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = call(self.make, alpha, what=f"activation {self.name}: making it")
        if not isinstance(made, nn.Module):
            raise ValueError(
                f"activation {self.name} must be {ALLOWED}, got one that makes "
                f"a {type(made).__name__}"
            )
        return made


def read_activation(text: str) -> UserDefinedActivation:
    """Import `module:function` and find out how to call it.

    Its attribute `alphas` holds the values that a search tries.
    """
    found = resolve(text, what="activation")
    what = f"activation {text}"
    if not callable(found) or isinstance(found, nn.Module):
        raise ValueError(f"{what} must be {ALLOWED}, got a {type(found).__name__}")
    takes = parameters(found, what=what)
    needed = [name for name in required(takes) if name != "alpha"]
    is_function = len(needed) == 1 and not isinstance(found, type)
    if needed and not is_function:
        raise ValueError(f"{what} must be {ALLOWED}, got one that needs {', '.join(needed)}")
    default, grid = _alphas(found, takes, what=what)
    if is_function:
        return UserDefinedActivation(
            text, _function(found, default), None, default, grid, _about(found)
        )
    return UserDefinedActivation(text, None, _maker(found, default), default, grid, _about(found))


def _function(found: Any, default: float | None) -> Callable[[Tensor, Any], Tensor]:
    if default is None:
        return lambda x, alpha: found(x)
    return lambda x, alpha: found(x, alpha=alpha)


def _maker(found: Any, default: float | None) -> Callable[[float | None], nn.Module]:
    if default is None:
        return lambda alpha: found()
    return lambda alpha: found(alpha=alpha)


def _alphas(
    found: Any, takes: dict[str, Any], *, what: str
) -> tuple[float | None, tuple[float, ...]]:
    given = getattr(found, "alphas", ())
    if "alpha" not in takes:
        if given:
            raise ValueError(
                f"{what} has alphas {given} but takes no alpha; "
                "add a parameter alpha=1.0, or remove the alphas"
            )
        return None, ()
    default = takes["alpha"].default
    try:
        grid = tuple(float(alpha) for alpha in given)
        default = float(default)
    except (TypeError, ValueError):
        raise ValueError(
            f"{what} must have numbers as alpha and alphas (alpha: float = 1.0), "
            f"got alpha={default!r} and alphas {given!r}"
        ) from None
    return default, grid or (default,)


def _about(found: Any) -> str:
    return next(iter((found.__doc__ or "").strip().splitlines()), "") or "your own"


def check_activation(user_defined: UserDefinedActivation, alpha: float | None) -> None:
    """Raise ValueError, in one line, for an activation that cannot be used.

    It must be an elementwise, finite function whose gradient is its derivative.
    """
    what = f"activation {user_defined.name}" + ("" if alpha is None else f" at alpha={alpha:g}")
    module = user_defined.module(alpha) if user_defined.make is not None else None
    double = copy.deepcopy(module).double() if module is not None else None
    middle = torch.linspace(-8, 8, 834, dtype=torch.float32) + 1 / 977
    x = torch.cat([middle, torch.tensor(LARGE, dtype=torch.float32)]).reshape(4, 5, 6, 7)
    _check_value(module or (lambda x: user_defined.apply(x, alpha)), x, what=what)
    if module is not None and not _same_state(module, user_defined.module(alpha)):
        raise ValueError(
            f"{what} changes its own state when it is called; remove running statistics"
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
            f"{what} changes its input in place; return a new tensor, without inplace=True"
        )
    if not y.isfinite().all():
        raise ValueError(
            f"{what} must be finite for |x| <= 100, got {float(y[~y.isfinite()][0])} "
            f"at x = {_first(x, ~y.isfinite()):g}"
        )
    if not torch.equal(y, _called(apply, x, what=what)):
        raise ValueError(f"{what} gives other values the second time; remove dropout and noise")
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))
    shuffled = _called(apply, x.flatten()[order].reshape(x.shape), what=what)
    if not torch.allclose(shuffled, y.flatten()[order].reshape(x.shape), rtol=1e-4, atol=1e-5):
        raise ValueError(
            f"{what} must act on each element alone; "
            "remove softmax and statistics of the batch or of channels"
        )


def _called(apply: Callable[[Tensor], Tensor], x: Tensor, *, what: str) -> Tensor:
    y = call(
        apply, x, what=f"{what}, given {x.dtype} of shape {tuple(x.shape)},".replace("torch.", "")
    )
    if not isinstance(y, Tensor):
        raise ValueError(
            f"{what} must return a tensor of its input's shape and dtype, got a {type(y).__name__}"
        )
    if y.shape != x.shape or y.dtype != x.dtype:
        got, wanted = (f"{tuple(one.shape)} {one.dtype}".replace("torch.", "") for one in (y, x))
        raise ValueError(f"{what} must return its input's shape and dtype, {wanted}, got {got}")
    return y


def _check_slope(apply: Callable[[Tensor], Tensor], x: Tensor, *, what: str) -> None:
    """Compare autograd's derivative with central differences in float64, but at kinks."""
    point = x.clone().requires_grad_(True)
    value = _called(apply, point, what=what)
    try:
        (slope,) = torch.autograd.grad(value.sum(), point)
    except RuntimeError as error:
        raise ValueError(
            f"{what} has no gradient ({first_line(error)}); "
            "use torch operations, without detach or no_grad"
        ) from None
    if not slope.isfinite().all():
        raise ValueError(
            f"{what} must have a finite gradient, got {float(slope[~slope.isfinite()][0])} "
            f"at x = {_first(x, ~slope.isfinite()):g}"
        )
    if not slope.any():
        raise ValueError(
            f"{what} has a gradient of 0 everywhere: no model can be trained through it, "
            "and no attack can follow it"
        )
    with torch.no_grad():
        ahead, here, behind = (_called(apply, x + h, what=what) for h in (STEP, 0.0, -STEP))
    measured = (ahead - behind) / (2 * STEP)
    left = (here - behind) / STEP
    right = (ahead - here) / STEP
    kinks = (left - right).abs() > KINK * (1 + measured.abs())
    if kinks.double().mean() > MOST_KINKS:
        raise ValueError(
            f"{what} must have a derivative almost everywhere, "
            f"got jumps or kinks at {int(kinks.sum())} of {x.numel()} points"
        )
    wrong = ~kinks & ((slope - measured).abs() > TOLERANCE * (1 + measured.abs()))
    if wrong.any():
        raise ValueError(
            f"{what} has a gradient that is not its derivative: at x = {_first(x, wrong):g} "
            f"autograd gives {float(slope[wrong][0]):.4g}, "
            f"finite differences {float(measured[wrong][0]):.4g}; "
            "a model that hides its derivative only looks robust"
        )


def measured_curvature(user_defined: UserDefinedActivation, alpha: float | None) -> float:
    """Return max |f''| of a user's activation on [-100, 100]: inf at a kink, nan without a slope.

    The steepest cells of a grid that is dense around 0 are divided until they are narrow. Where the
    slope still changes by more than JUMP inside one of them, the derivative jumps.
    """
    around = torch.logspace(-6, 2, 1001, dtype=torch.float64)
    edges = torch.cat([-around.flip(0), torch.zeros(1, dtype=torch.float64), around])
    left = edges[:-1]
    right = edges[1:]
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
