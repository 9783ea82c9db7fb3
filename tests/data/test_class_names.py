"""Classes of a model and of a dataset are matched by their names."""

import pytest
import torch

from sat_ray.data.class_names import (
    below_chance,
    doubled,
    label_order,
    numbers_out_of_order,
    relabelled,
)
from sat_ray.data.split import Split

THREE = ["ant", "bee", "café"]

ORDERS: dict[str, tuple[list[str], list[str], tuple[int, ...]]] = {
    "the same": (THREE, THREE, ()),
    "another order": (THREE, ["café", "ant", "bee"], (2, 0, 1)),
    "another Unicode form": (THREE, ["ant", "bee", "cafe\u0301"], ()),
    "both": (THREE, ["cafe\u0301", "bee", "ant"], (2, 1, 0)),
    "a model without names": ([], THREE, ()),
    "data without names": (THREE, [], ()),
}


@pytest.mark.parametrize("case", ORDERS)
def test_labels_are_mapped_by_name(case: str) -> None:
    model, data, order = ORDERS[case]
    assert label_order(model, data, what="data x") == order
    split = Split(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.arange(3), torch.arange(3))
    labels = relabelled(split, order).labels.tolist()
    assert labels == (list(order) if order else [0, 1, 2])


@pytest.mark.parametrize("data", [["ant", "bee"], ["ant", "bee", "cat"], [*THREE, "dog"]], ids=str)
def test_other_classes_are_refused_with_both_lists(data: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"^data x must have the classes .*\(ant, bee, café\), got ant, bee"
    ):
        label_order(THREE, data, what="data x")


@pytest.mark.parametrize(
    ("names", "found"),
    [(THREE, ""), ([*THREE, "bee"], "bee"), ([*THREE, "cafe\u0301"], "café"), ([], "")],
    ids=str,
)
def test_a_name_that_comes_twice_is_found_in_either_unicode_form(
    names: list[str], found: str
) -> None:
    assert doubled(names) == found


def test_long_lists_of_classes_are_shortened() -> None:
    names = [f"class{number}" for number in range(1000)]
    with pytest.raises(
        ValueError, match=r"\(class0, class1, class2, class3, class4 and 995 more\), got ant"
    ) as error:
        label_order(names, THREE, what="data x")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (sorted(str(number) for number in range(12)), True),
        ([str(number) for number in range(10)], False),
        ([f"{number:02d}" for number in range(12)], False),
        (["0", "1", "10", "ant"], False),
        ([], False),
    ],
)
def test_numbers_in_the_order_of_text_give_a_warning(names: list[str], warned: bool) -> None:
    assert bool(numbers_out_of_order(names)) == warned
    if warned:
        assert "(0, 1, 10, 11, 2 and 7 more): class 2 is 10; " in numbers_out_of_order(names)
        assert "(such as 00)" in numbers_out_of_order(names)


@pytest.mark.parametrize(
    ("accuracy", "warned"), [(0.0, True), (0.09, True), (0.1, False), (0.9, False)]
)
def test_a_clean_accuracy_below_chance_gives_a_warning(accuracy: float, warned: bool) -> None:
    assert bool(below_chance(accuracy, 10)) == warned
