"""The points of a search: an activation, and the attacker's view of it during training."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sat_ray.activations.registry import (
    ACTIVATIONS,
    activation_info,
    alpha_text,
    curvature,
    display_name,
    function_of,
    leaves_out,
)
from sat_ray.models.spec import check_attacker_activation
from sat_ray.utils.bounds import shown
from sat_ray.utils.import_string import is_reference, slug, stored_names


@dataclass(frozen=True, kw_only=True)
class SearchPoint:
    """Name an (activation, attacker_activation) pair with its alphas.

    Illegal pairs raise ValueError.

    alpha, attacker_alpha: None where the activation has none (or learns it); attacker_activation:
    "" for the model's own.
    """

    activation: str
    alpha: float | None = None
    attacker_activation: str = ""
    attacker_alpha: float | None = None

    def __post_init__(self) -> None:
        alpha = activation_info(self.activation).check_alpha(
            self.alpha, field=f"alpha of {self.activation}"
        )
        attacker = self.attacker_activation or self.activation
        attacker_alpha = alpha if attacker == self.activation else self.attacker_alpha
        check_attacker_activation(self.activation, alpha, attacker, attacker_alpha)
        resolved = activation_info(attacker).check_alpha(attacker_alpha)
        for field, value in (
            ("alpha", alpha),
            ("attacker_activation", attacker),
            ("attacker_alpha", resolved),
        ):
            object.__setattr__(self, field, value)

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> "SearchPoint":
        """Return the configuration of a committed training. payload: of its record."""
        return cls.stored(payload["configuration"])

    @classmethod
    def stored(cls, value: Mapping[str, Any]) -> "SearchPoint":
        """Return a configuration that a stored file holds.

        Raises ValueError where it is something else, UnconfirmedCodeError where it names code that
        no person named.
        """
        try:
            with stored_names():
                return cls(**value)
        except (TypeError, AttributeError):
            names = ", ".join(field.name for field in fields(cls))
            raise ValueError(
                f"configuration must be a JSON object with fields of {names}, got {shown(value)}"
            ) from None

    @property
    def own_attacker(self) -> bool:
        """Say whether the attacker differentiates through the model's own activation."""
        return self.attacker_activation == self.activation

    @property
    def pair(self) -> tuple[str, str]:
        """Return the names of both activations: points of one group have the same."""
        return self.activation, self.attacker_activation

    @property
    def functions(self) -> tuple[tuple[str, float | None], tuple[str, float | None]]:
        """Return what model and attacker compute: equal where two names mean one training."""
        model = function_of(self.activation, self.alpha)
        return model, function_of(self.attacker_activation, self.attacker_alpha)

    @property
    def curvature(self) -> float:
        """Return the curvature of the model's activation."""
        return curvature(self.activation, self.alpha)

    @property
    def name(self) -> str:
        """Name it as people say it."""
        return configuration_name(
            self.activation,
            alpha=self.alpha,
            attacker_activation=self.attacker_activation,
            attacker_alpha=self.attacker_alpha,
        )

    @property
    def slug(self) -> str:
        """Name it for a file: letters, digits, '.', '_' and '-'."""
        text = _slug(self.activation, self.alpha)
        if self.own_attacker:
            return text
        return f"{text}-vs-{_slug(self.attacker_activation, self.attacker_alpha)}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def _slug(name: str, alpha: float | None) -> str:
    if alpha is None or leaves_out(name, alpha):
        return slug(name)
    return f"{slug(name)}-a{alpha_text(alpha)}"


def configuration_name(
    activation: str, *, alpha: float | None, attacker_activation: str, attacker_alpha: float | None
) -> str:
    """Return a display name: `silu`, `silu α=10`, `relu · attacker relu_smooth_backward α=10`."""
    own = display_name(activation, alpha)
    if (attacker_activation, attacker_alpha) == (activation, alpha):
        return own
    return f"{own} · attacker {display_name(attacker_activation, attacker_alpha)}"


def parse_choice(text: str, *, field: str) -> list[SearchPoint]:
    """Read one entry of a search: `relu`, `silu` (its own grid of alphas) or `silu:1,4`.

    An activation of the user's own is `module:function` or `module:function:5,10`.

    Raises ValueError naming the field, the value and what is allowed.
    """
    name, colon, values = _name_and_alphas(text)
    info = activation_info(name, field=field)
    if colon:
        alphas = [_number(value, field=f"{field} {text!r}") for value in values.split(",")]
        return [SearchPoint(activation=name, alpha=alpha) for alpha in alphas]
    return [SearchPoint(activation=name, alpha=alpha) for alpha in info.grid]


def _name_and_alphas(text: str) -> tuple[str, str, str]:
    head, colon, values = text.rpartition(":")
    own = is_reference(text) and head not in ACTIVATIONS  # relu:x is a mistyped alpha, no module
    return (head, colon, values) if colon and not own else (text, "", "")


def without_repeats(given: Sequence[SearchPoint]) -> tuple[SearchPoint, ...]:
    """Return configurations in the order given, each function once.

    Of two names for one function the one with fewer alphas to choose from stays, so that
    `softplus parametric_softplus:1,10` still has a row for softplus; of equals the first.
    """
    given = tuple(dict.fromkeys(given))
    alphas = Counter(one.pair for one in given)
    kept: dict[object, SearchPoint] = {}
    for one in sorted(given, key=lambda one: alphas[one.pair]):
        kept.setdefault(one.functions, one)
    return tuple(one for one in given if kept[one.functions] == one)


def parse_pair(text: str, *, field: str) -> SearchPoint:
    """Read `activation/attacker_activation`, for example `relu/relu_smooth_backward`."""
    activation, slash, attacker = text.partition("/")
    if not slash or not attacker:
        raise ValueError(
            f"{field} must be activation/attacker_activation, for example "
            f"relu/relu_smooth_backward, got {text!r}"
        )
    return SearchPoint(activation=activation, attacker_activation=attacker)


def _number(text: str, *, field: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{field}: an alpha must be a number, got {text!r}; "
            "for example parametric_softplus:5,10,20"
        ) from None


@dataclass(frozen=True)
class Group:
    """Points that compete for one place on the leaderboard: an activation's alphas, or a pair."""

    members: tuple[SearchPoint, ...]


def groups(configurations: Sequence[SearchPoint]) -> list[Group]:
    """Gather the configurations that differ in alpha alone, in the order of their first member."""
    found: dict[tuple[str, str], list[SearchPoint]] = {}
    for one in configurations:
        found.setdefault(one.pair, []).append(one)
    return [Group(tuple(members)) for members in found.values()]


def promote(
    group: Group, scores: dict[SearchPoint, tuple[float, float]], *, reduction: int
) -> Group:
    """Keep the best 1 / reduction of a group (at least one) by (robust, clean) score.

    Ties go to the earlier configuration.
    """
    ranked = sorted(
        group.members, key=lambda one: (tuple(-v for v in scores[one]), group.members.index(one))
    )
    return Group(tuple(ranked[: max(1, -(-len(ranked) // reduction))]))
