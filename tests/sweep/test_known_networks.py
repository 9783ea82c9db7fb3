"""The table of operations that spares a dry run torch holds what torch counts."""

import pytest

from sat_ray.data.sources.registry import dataset_source
from sat_ray.data.sources.user_defined import counted
from sat_ray.sweep.cost import estimate
from sat_ray.sweep.cost.known_networks import KNOWN, Counted, Network
from sat_ray.sweep.recipes import RECIPES


def test_the_table_holds_what_the_recipes_need_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = set[Network]()

    class Noted(dict[Network, Counted]):
        def get(self, network: Network, default: Counted | None = None) -> Counted:  # type: ignore[override]
            needed.add(network)
            return self[network]

    monkeypatch.setattr(estimate, "KNOWN", Noted(KNOWN))
    for make in RECIPES.values():
        config = make()
        source = counted(dataset_source(config.data.dataset), config.data.path)
        estimate.costs(config, source, estimate.passes_of(config, source))
    assert needed == set(KNOWN)


@pytest.mark.parametrize("network", KNOWN, ids=lambda network: f"{network[0]}-{network[3][1]}")
def test_torch_counts_the_same(network: Network) -> None:
    assert estimate.count(network) == KNOWN[network]
