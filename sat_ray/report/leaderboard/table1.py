"""The five rows of the paper's Table 1, as they came out in a sweep."""

from collections.abc import Callable, Mapping
from typing import Any

from sat_ray.report.formatting import pgd_name, spread
from sat_ray.report.leaderboard.columns import against_relu_cell
from sat_ray.report.leaderboard.groups import PGD, STRONG
from sat_ray.report.table import NAME, WORDS, Column, Item

# (attacker's backward, optimizer's backward, activation, attacker_activation)
TABLE1_ROWS = (
    ("ReLU", "ReLU", "relu", "relu"),
    ("smooth", "ReLU", "relu", "relu_smooth_backward"),
    ("ReLU", "smooth", "relu_smooth_backward", "relu"),
    ("smooth", "smooth", "relu_smooth_backward", "relu_smooth_backward"),
    ("parametric softplus, forward and backward", "", "parametric_softplus", "parametric_softplus"),
)


def table1_rows(board: Item) -> list[dict[str, Any]]:
    """Return one row per combination: {"attacker_backward", "optimizer_backward", "group"}.

    group: None where the sweep has no such configuration; of several α the best by validation.
    """
    return [
        {
            "attacker_backward": attacker_backward,
            "optimizer_backward": optimizer_backward,
            "group": _best(board, (activation, attacker_activation)),
        }
        for attacker_backward, optimizer_backward, activation, attacker_activation in TABLE1_ROWS
    ]


def _best(board: Item, pair: tuple[str, str]) -> Mapping[str, Any] | None:
    """Return the best configuration of (activation, attacker_activation) by validation."""
    chosen_by = board["champion"]["selected_by"]
    fitting = [
        group
        for group in board["groups"]
        if (group["activation"], group["attacker_activation"]) == pair
    ]
    known = [group for group in fitting if group[chosen_by] is not None]
    by = chosen_by if known else "val_robust_accuracy"
    order = sorted(known or fitting, key=lambda group: (-group[by]["mean"], group["configuration"]))
    return order[0] if order else None


def table1_columns(board: Item) -> list[Column]:
    """Return the columns of the paper's Table 1, items as `table1_rows` returns them."""
    by_strong = board["measure"] == STRONG

    def of_group(title: str, key: str) -> Column:
        return Column(title, _of_group(lambda group: group[key]), spread)

    return [
        Column("attacker's backward", _backward, kind=NAME),
        Column("optimizer's backward", "optimizer_backward", kind=WORDS),
        of_group("clean", "clean_accuracy"),
        *([of_group("strong robust", STRONG)] if by_strong else []),
        of_group(pgd_name(board) if by_strong else "robust", PGD),
        Column(
            "against relu", _of_group(against_relu_cell), kind=WORDS, missing="not in this sweep"
        ),
    ]


def _of_group(value: Callable[[Item], Any]) -> Callable[[Item], Any]:
    return lambda row: None if row["group"] is None else value(row["group"])


def _backward(row: Item) -> str:
    group = row["group"]
    if row["optimizer_backward"] or group is None or group["alpha"] is None:
        return str(row["attacker_backward"])
    return f"{row['attacker_backward']} (α = {group['alpha']:.4g})"
