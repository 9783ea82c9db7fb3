"""How many images a model still classifies correctly under each corruption."""

import torch

from sat_ray.attacks.base import Model
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.evaluation.corruptions.kinds import KINDS, SEVERITIES, corrupted
from sat_ray.evaluation.corruptions.summary import Counts
from sat_ray.evaluation.engine.run_attack import slot_logits
from sat_ray.utils.randomness import Randomness

AT_ONCE = 64  # images that are corrupted together


def corruption_counts(
    model: Model, images: Split, *, seed: int, slots: int, device: torch.device
) -> Counts:
    """Return the correctly classified images of each kind and severity.

    model: [0, 1] pixels -> logits, in inference mode; images: uint8 with 1 or 3 channels, at least
    one; seed: of the draws; slots: images in every call of the model.
    """
    found: Counts = {kind: [0] * SEVERITIES for kind in KINDS}
    for first in range(0, len(images), AT_ONCE):
        some = images.take(slice(first, first + AT_ONCE))
        x = to_pixels(some.images.to(device))
        rng = Randomness(seed, some.image_ids)
        for kind, counts in found.items():
            for severity in range(SEVERITIES):
                changed = corrupted(x, rng, kind=kind, severity=severity).cpu()
                logits = slot_logits(model, changed, some.image_ids, slots=slots, device=device)
                counts[severity] += int((logits.argmax(dim=1) == some.labels).sum())
    return found
