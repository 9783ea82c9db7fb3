"""The name under which a champion is registered, and when it may take the alias `champion`.

A name holds what its versions have in common: data set, architecture and threat model, as in
`digits-small_resnet-linf-64-255`. Where the name of a data set does not determine its images, as
with folders and user-defined code, the start of the data's hash follows. Sweeps of the same three
compete for one champion; sweeps of anything else have another model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sat_ray.data.sources.registry import dataset_source
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.tasks import Dataset
from sat_ray.threat import ThreatModel, as_255ths
from sat_ray.utils.import_string import is_reference, slug

ALIAS = "champion"
DATA = "sat_ray.dataset"
THREAT = "sat_ray.threat_model"
NUMBER = "sat_ray.val_robust_accuracy"
MEASURED = "sat_ray.val_attack"
COMPARED = {
    DATA: "data",
    THREAT: "threat model",
    MEASURED: "validation attack",
}  # what two numbers must have in common


def registered_name(config: SweepConfig, data: Dataset) -> str:
    """Return the name of the registered model; without `/` and `:`, which MLflow does not allow."""
    dataset = config.data.dataset
    source = dataset_source(dataset)
    varies = is_reference(dataset) or source.anonymous or source.encoded
    images = f"{slug(dataset)}-{data.hash[:8]}" if varies else dataset
    norm = config.threat_model.norm
    epsilon = config.threat_model.epsilon
    radius = as_255ths(epsilon).replace("/", "-") if norm == "linf" else f"{epsilon:g}"
    return f"{images}-{slug(config.model.name)}-{norm}-{radius}"


def compared_threat(threat_model: ThreatModel) -> str:
    """Return the threat model as versions carry it; they are compared by it, so it never changes.

    Pages spell an l2 radius otherwise (`length_text`).
    """
    return f"{threat_model.norm} {as_255ths(threat_model.epsilon)}"


@dataclass(frozen=True)
class Contender:
    """What decides about the alias.

    number: robust accuracy on validation, mean over seeds; measured: names of the attacks.
    """

    data: str
    threat_model: str
    number: float
    measured: str

    @property
    def tags(self) -> dict[str, str]:
        """Return it as tags of a model version, from which a later contender reads it."""
        return {
            DATA: self.data,
            THREAT: self.threat_model,
            NUMBER: f"{self.number:.6f}",
            MEASURED: self.measured,
        }


def objection(new: Contender, present: Mapping[str, str]) -> str:
    """Return why a new version must not replace the present champion, "" where it may.

    present: tags of the version that holds the alias.
    """
    ours = new.tags
    differing = [word for tag, word in COMPARED.items() if present.get(tag) != ours[tag]]
    if differing:
        return (
            f"the present one was measured with another {' and another '.join(differing)}, "
            "so the two cannot be compared"
        )
    theirs = float(present[NUMBER])
    if theirs >= float(ours[NUMBER]):
        return (
            f"the present one has {100 * theirs:.1f} % robust accuracy on validation, "
            f"this one {100 * new.number:.1f} %"
        )
    return ""
