"""Probabilities, plain or scaled, are told from logits; logits of any scale or offset pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sat_ray.utils.probabilities import bounded_outputs, require_no_probabilities

LOGITS = 4 * torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
FEW = LOGITS[:3]

REFUSED: dict[str, Tensor] = {
    "softmax": LOGITS.softmax(1),
    "softmax of one image": LOGITS[:1].softmax(1),
    "softmax in bf16": LOGITS.softmax(1).bfloat16().float(),
    "per cent": 100 * LOGITS.softmax(1),
    "per cent in bf16": (100 * LOGITS.softmax(1)).bfloat16().float(),
    "thousandths": 1e-3 * LOGITS.softmax(1),
    "clamped": 10 * LOGITS.softmax(1).clamp(1e-7, 1),
    "softmax minus 1": LOGITS.softmax(1) - 1,
    "two classes": torch.stack([LOGITS[:, 0].sigmoid(), (-LOGITS[:, 0]).sigmoid()], dim=1),
}
ACCEPTED: dict[str, Tensor] = {
    "logits": LOGITS,
    "log-probabilities": LOGITS.log_softmax(1),
    "centred logits": LOGITS - LOGITS.mean(1, keepdim=True),
    "positive logits": LOGITS.relu(),
    "logits far above 0": LOGITS + 100,
    "small logits": 1e-4 * LOGITS.abs(),
    "masked classes": torch.cat([-LOGITS.abs(), LOGITS.new_full((32, 90), -1e30)], dim=1),
    "one answer": LOGITS[:1].abs().expand(32, -1),
    "few images": FEW.abs(),
    "sigmoids": LOGITS.sigmoid(),
    "cosines": 16 * torch.nn.functional.normalize(LOGITS.abs(), dim=1),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_probabilities_are_refused(kind: str) -> None:
    with pytest.raises(
        ValueError, match=r"^model x returns (scaled )?probabilities \(rows .* return logits"
    ):
        require_no_probabilities(REFUSED[kind], what="model x")


@pytest.mark.parametrize("kind", ACCEPTED)
def test_logits_are_accepted(kind: str) -> None:
    require_no_probabilities(ACCEPTED[kind], what="model x")


BOUNDED: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "sigmoids": (torch.sigmoid, True),
    "softmax without its last class": (lambda z: z.softmax(1)[:, :9], True),
    "logits": (lambda z: z, False),
    "three images": (lambda z: z[:3].sigmoid(), False),
    "one answer": (lambda z: z[:1].sigmoid().expand(32, -1), False),
}


@pytest.mark.parametrize("kind", BOUNDED)
def test_outputs_between_0_and_1_give_a_warning(kind: str) -> None:
    function, warned = BOUNDED[kind]
    assert bool(bounded_outputs(function(LOGITS))) == warned
