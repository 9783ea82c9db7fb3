"""One sharpness: f_alpha(x) = f(alpha x) / alpha, its curvature, its limits,
and numbers that never overflow.
"""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from repository import ROOT
from torch import Tensor

from sat_ray.activations.registry import (
    ACTIVATIONS,
    ActivationInfo,
    activation_info,
    curvature,
    curvature_text,
    display_name,
    make_activation,
)
from sat_ray.activations.table import alphas_and_curvatures
from sat_ray.activations.user_defined import measured_curvature, read_activation
from sat_ray.integrations.command_line.dry_run import plan
from sat_ray.integrations.mlflow.metrics import compared_params, curvature_metrics
from sat_ray.sweep.config import SearchSettings
from sat_ray.sweep.recipes.digits import digits, study
from sat_ray.sweep.search.search_space import SearchPoint, groups
from sat_ray.utils import compile as compilation

SCALED = ("silu", "gelu", "mish", "parametric_softplus", "smoothrelu")
SMOOTH = (*SCALED, "celu")
ALPHAS = (1e-3, 0.1, 1.0, 10.0, 1e3, 1e6)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WITH_ALPHA = [
    pytest.param(info, alpha, id=f"{info.name}-{alpha:g}")
    for info in ACTIVATIONS.values()
    if info.alpha is not None
    for alpha in ALPHAS
    if info.alpha.low <= alpha <= info.alpha.high
]


def second_derivative(info: ActivationInfo, alpha: float, x: Tensor) -> Tensor:
    """Differentiate twice by autograd."""
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(info.function(point, alpha).sum(), point, create_graph=True)
    return torch.autograd.grad(slope.sum(), point)[0]


@pytest.mark.parametrize("alpha", [0.25, 1.0, 3.0, 64.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_curvature_is_the_largest_second_derivative(name: str, alpha: float) -> None:
    sharpness = 1 / alpha if name == "celu" else alpha
    x = torch.linspace(-8, 8, 400_001, dtype=torch.float64) / sharpness
    x = x + 1e-12 / sharpness  # beside 0, where a derivative of one side is a convention
    numeric = float(second_derivative(activation_info(name), alpha, x).abs().max())
    within = 1e-4 if name in ("smoothrelu", "celu") else 1e-9  # of these the maximum is a limit
    assert curvature(name, alpha) == pytest.approx(numeric, rel=within)


@pytest.mark.parametrize(
    ("name", "alpha", "value"),
    [("silu", None, 0.5), ("silu", 8.0, 4.0), ("gelu", 2.0, 2 * math.sqrt(2 / math.pi)),
     ("softplus", None, 0.25),
     ("parametric_softplus", None, 2.5), ("smoothrelu", 7.0, 7.0), ("celu", 0.25, 4.0),
     ("elu", 1.0, 1.0)],
)  # fmt: skip
def test_curvature_has_its_closed_form(name: str, alpha: float | None, value: float) -> None:
    assert curvature(name, alpha) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "alpha"),
    [("relu", None), ("relu_smooth_backward", None), ("relu_smooth_backward", 2.0), ("elu", 0.5),
     ("elu", 2.0)],
)  # fmt: skip
def test_a_derivative_that_jumps_has_infinite_curvature(name: str, alpha: float | None) -> None:
    assert curvature(name, alpha) == math.inf
    if name == "elu":
        h = torch.tensor([-1e-9, 1e-9], dtype=torch.float64)
        below, above = activation_info(name).derivative(h, alpha).tolist()
        assert abs(above - below) > 0.4


def test_every_entry_has_a_curvature_and_a_learned_one_only_at_its_start() -> None:
    for name, info in ACTIVATIONS.items():
        assert math.isnan(curvature(name, None)) == info.learned
        if info.learned:
            fixed = name.removesuffix("_learned")
            assert info.curvature(info.alpha_start) == curvature(fixed, info.alpha_start)
        else:
            assert curvature(name, None) > 0
    with pytest.raises(ValueError, match=r"alpha must be from 0\.001 to 1e\+06 for silu, got 0"):
        curvature("silu", 0.0)


@pytest.mark.parametrize("alpha", [1e-3, 0.3, 7.0, 1e6])
@pytest.mark.parametrize("name", SCALED)
def test_alpha_scales_input_and_output(name: str, alpha: float) -> None:
    x = torch.linspace(-30, 30, 601, dtype=torch.float64) / alpha
    info = activation_info(name)
    expected = info.function(alpha * x, 1.0) / alpha
    torch.testing.assert_close(info.function(x, alpha), expected, rtol=1e-12, atol=1e-14 / alpha)
    torch.testing.assert_close(info.derivative(x, alpha), info.derivative(alpha * x, 1.0))
    assert curvature(name, alpha) == pytest.approx(alpha * curvature(name, 1.0), rel=1e-12)


@pytest.mark.parametrize("name", SCALED)
def test_a_large_alpha_is_relu(name: str) -> None:
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    gaps = [
        float((activation_info(name).function(x, alpha) - torch.relu(x)).abs().max())
        for alpha in (10.0, 1e3, 1e6)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 2e-5  # smoothrelu: log(5e6) / 1e6


@pytest.mark.parametrize("name", ["silu", "gelu", "mish", "parametric_softplus"])
def test_a_small_alpha_is_a_straight_line(name: str) -> None:
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    y = activation_info(name).function(x, 1e-3)
    slope = 0.6 if name == "mish" else 0.5  # of mish: tanh(log(2))
    torch.testing.assert_close(y - y[500], slope * x, rtol=0, atol=2e-2)


def test_a_small_alpha_of_smoothrelu_is_zero() -> None:
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    assert float(make_activation("smoothrelu", alpha=1e-3)(x).abs().max()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "torchs"), [("silu", F.silu), ("gelu", F.gelu), ("mish", F.mish)])
def test_alpha_one_is_torchs_own_bit_for_bit(
    name: str, torchs: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    x = torch.randn(4099, generator=torch.Generator().manual_seed(0)).mul(4).to(dtype)
    found = []
    for function in (make_activation(name), make_activation(name, alpha=1.0), torchs):
        point = x.clone().requires_grad_()
        value = function(point)
        (slope,) = torch.autograd.grad(value, point, x.cos())
        found.append((value.detach(), slope))
    for value, slope in found[:2]:
        assert torch.equal(value, found[2][0]) and torch.equal(slope, found[2][1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("info", "alpha"), WITH_ALPHA)
def test_nothing_overflows_at_any_input_and_alpha(
    info: ActivationInfo, alpha: float, dtype: torch.dtype
) -> None:
    largest = torch.finfo(dtype).max / 2  # torch's own GELU doubles its input on the way
    sizes = torch.tensor(
        [0.0, 1e-30, 1e-3, 1.0, 50.0, 6e4, 1e15, 1e30, largest], dtype=torch.float64
    )
    x = torch.cat([-sizes, sizes]).clamp(-largest, largest).to(dtype)
    point = x.clone().requires_grad_()
    value = info.function(point, alpha)
    (slope,) = torch.autograd.grad(value.sum(), point, create_graph=True)
    assert value.isfinite().all() and slope.isfinite().all()
    (quiet,) = torch.autograd.grad(info.function(point, alpha).sum(), point)
    torch.testing.assert_close(quiet, slope.detach(), rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
    if slope.requires_grad:
        (bend,) = torch.autograd.grad(slope.sum(), point)
        bounded = info.forward_of or curvature(info.name, alpha) == math.inf
        held = (0.25 * alpha if bounded else curvature(info.name, alpha)) < largest
        assert bend.isfinite().all() if held else not bend.isnan().any()
    far = x > 1e14
    torch.testing.assert_close(value[far].detach(), x[far])
    assert (slope.detach()[far] == 1).all()


@pytest.mark.parametrize("name", ["silu_learned", "gelu_learned", "smoothrelu_learned"])
@pytest.mark.parametrize("beta", [0.1, 1.0, 20.0])
def test_a_learned_alpha_has_the_gradients_of_finite_differences(name: str, beta: float) -> None:
    x = torch.linspace(-3, 3, 24, dtype=torch.float64).add(1e-2).div(beta**2).requires_grad_()
    scale = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    function = activation_info(name).function
    assert torch.autograd.gradcheck(lambda x, b: function(x, b.square()), (x, scale), eps=1e-7)
    if name != "smoothrelu_learned":
        assert torch.autograd.gradgradcheck(
            lambda x, b: function(x, b.square()), (x, scale), eps=1e-7, atol=1e-4
        )


@pytest.mark.parametrize("name", ["silu", "gelu", "smoothrelu"])
def test_a_learned_activation_starts_as_the_one_with_its_first_alpha(name: str) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    learned = make_activation(f"{name}_learned")
    start = activation_info(f"{name}_learned").alpha_start
    assert start == {"silu": 1.0, "gelu": 1.0, "smoothrelu": 400.0}[name]
    fixed = make_activation(name, alpha=start)
    torch.testing.assert_close(learned(x), fixed(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_sharpness_compiles_to_the_same_numbers(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    names = [*((name, alpha) for name in SCALED for alpha in (0.25, 16.0)), ("silu_learned", None)]
    modules = torch.nn.ModuleList(make_activation(name, alpha=alpha) for name, alpha in names)

    class Together(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = modules

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([one(x) for one in self.all])

    found = []
    for call in (Together(), compilation.compiled(Together())):
        x = torch.tensor([-6e4, -20.0, -1.0, 0.0, 0.5, 3.0, 6e4], dtype=dtype, requires_grad=True)
        value = call(x)
        found.append((value, *torch.autograd.grad(value.float().cos().sum(), [x])))
    for ours, theirs in zip(*found, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs)


def test_names_leave_out_an_alpha_of_one_where_everybody_does() -> None:
    assert display_name("silu", 1.0) == display_name("silu", None) == "silu"
    assert display_name("silu", 4.0) == "silu α=4"
    assert display_name("elu", 1.0) == "elu α=1"
    assert display_name("parametric_softplus", 10.0) == "parametric_softplus α=10"
    slugs = [SearchPoint(activation="gelu", alpha=alpha).slug for alpha in (1.0, 0.25, 64.0)]
    assert slugs == ["gelu", "gelu-a0.25", "gelu-a64"]


def test_a_record_from_before_silu_had_an_alpha_is_read() -> None:
    old = {
        "activation": "silu",
        "alpha": None,
        "attacker_activation": "silu",
        "attacker_alpha": None,
    }
    found = SearchPoint.of({"configuration": old})
    assert found == SearchPoint(activation="silu", alpha=1.0)
    assert (found.name, found.slug) == ("silu", "silu")


@pytest.mark.parametrize(
    ("given", "searched", "left_out"),
    [
        (("softplus", "parametric_softplus:1,10"), ["softplus", "parametric_softplus α=10"],
        ("parametric_softplus α=1",)),
        (("parametric_softplus:1,10", "softplus"), ["parametric_softplus α=10", "softplus"],
        ("parametric_softplus α=1",)),
        (("parametric_softplus:1", "softplus"), ["parametric_softplus α=1"], ("softplus",)),
        (("elu:1", "celu:1,2"), ["elu α=1", "celu α=2"], ("celu α=1",)),
        (("silu", "silu:1,4"), ["silu", "silu α=0.25", "silu α=4", "silu α=16", "silu α=64"], ()),
    ],
)  # fmt: skip
def test_a_search_trains_no_function_twice(
    given: tuple[str, ...], searched: list[str], left_out: tuple[str, ...]
) -> None:
    search = SearchSettings(activations=given, pairs=())
    assert [one.name for one in search.points()] == searched
    assert search.repeated() == left_out


def test_no_two_points_of_the_default_search_are_one_function() -> None:
    x = torch.linspace(-4, 4, 97, dtype=torch.float64)
    seen: dict[bytes, str] = {}
    for one in SearchSettings(pairs=()).points():
        if not activation_info(one.activation).learned:
            value = make_activation(one.activation, alpha=one.alpha)(x).mul(1e9).round()
            assert seen.setdefault(value.numpy().tobytes(), one.name) == one.name


@pytest.mark.parametrize("name", SMOOTH)
def test_the_grid_of_a_smooth_activation_is_geometric_and_reaches_both_ends(name: str) -> None:
    info = activation_info(name)
    assert info.alpha is not None
    ratios = {round(b / a, 9) for a, b in zip(info.alpha.grid, info.alpha.grid[1:], strict=False)}
    assert len(ratios) == 1
    bends = [curvature(name, alpha) for alpha in info.alpha.grid]
    assert min(bends) <= 2.5 and max(bends) >= 16
    assert any(3 <= bend <= 13 for bend in bends)  # around the 4 to 10 of arXiv 2603.23860
    assert info.grid[0] == info.alpha.default  # first, for a search that its budget cuts


def test_the_table_of_the_documentation_shows_the_grids_of_the_registry() -> None:
    text = (ROOT / "docs" / "explanation" / "science.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    shown = {
        row[0].partition("(")[0]: row for row in rows if row[0].partition("(")[0] in ACTIVATIONS
    }
    assert shown.keys() == ACTIVATIONS.keys()
    for name, info in ACTIVATIONS.items():
        if info.alpha is not None:
            assert shown[name][-1] == " ".join(f"{alpha:g}" for alpha in info.alpha.grid)
        if name in SCALED:
            value = curvature(name, 1.0)
            forms = {"α": 1.0, "α/2": 0.5, "α/4": 0.25, "0.644 α": 0.644}
            assert forms.get(shown[name][3], 0.798) == pytest.approx(value, abs=5e-4)


def my_tanh(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Bend on both sides of 0."""
    return torch.tanh(alpha * x) / alpha


def my_steps(x: Tensor) -> Tensor:
    """Have a small kink far from 0."""
    return x + 0.1 * F.relu(x - 6)


my_tanh.alphas = (0.0, 1.0)  # type: ignore[attr-defined]


def test_the_curvature_of_a_users_activation_is_measured() -> None:
    tanh = read_activation("test_sharpness:my_tanh")
    for alpha in (0.5, 1.0, 1e3):
        found = measured_curvature(tanh, alpha)
        assert found == pytest.approx(alpha * 4 / (3 * math.sqrt(3)), rel=1e-5)
    assert measured_curvature(read_activation("test_sharpness:my_steps"), None) == math.inf
    assert curvature("test_sharpness:my_tanh", 2.0) == pytest.approx(1.5396, rel=1e-4)


def test_alphas_are_drawn_log_uniform_between_the_ends_of_the_grid() -> None:
    from sat_ray.integrations.ray.search.async_search import _alpha_bounds, _between

    (group,) = groups(SearchSettings(activations=("silu",), pairs=()).points())
    assert _alpha_bounds(group) == (0.25, 64.0)
    drawn = [_between(0.25, 64.0, position) for position in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert drawn == pytest.approx([0.25, 1.0, 4.0, 16.0, 64.0])
    assert [_between(0.0, 2.0, position) for position in (0.0, 0.5, 1.0)] == [0.0, 1.0, 2.0]
    assert _between(-2.0, 2.0, 0.25) == -1.0


def test_curvature_stands_beside_alpha_in_the_plan_and_in_mlflow() -> None:
    assert plan(digits())["search space, relu"] == "curvature infinite"
    assert plan(study())["search space, silu_learned"].startswith("alpha learned from 1,")
    assert alphas_and_curvatures("silu", (4.0, 1.0)) == "alpha 1 4; curvature 0.5 2"
    assert alphas_and_curvatures("elu", (1.0, 2.0)) == "alpha 1 2; curvature 1 infinite"
    sharp = SearchPoint(activation="silu", alpha=8.0)
    assert compared_params(sharp)["curvature"] == "4" and curvature_metrics(sharp) == {
        "curvature": 4.0
    }
    for name, text in (("relu", "infinite"), ("silu_learned", "unknown")):
        one = SearchPoint(activation=name)
        assert compared_params(one)["curvature"] == text and not curvature_metrics(one)
    assert curvature_text(0.7978845608) == "0.798"
