"""Under which name a champion is registered, and when it may take the alias `champion` from the version that holds it.

A name says what its versions have in common: data set, architecture and threat model, as in `digits-small_resnet-linf-64-255`. Data
sets whose images only a folder or the user's code can tell also carry the start of the data's hash. Sweeps of the same three
compete for one champion; sweeps of anything else have a model of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sat_ray.data.sources.registry import dataset_source
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.tasks import Dataset
from sat_ray.threat import as_255ths
from sat_ray.utils.import_string import is_reference, slug

ALIAS = "champion"
DATA, THREAT = "sat_ray.dataset", "sat_ray.threat_model"
NUMBER, MEASURED = "sat_ray.val_robust_accuracy", "sat_ray.val_attack"
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
    norm, epsilon = config.threat_model.norm, config.threat_model.epsilon
    radius = as_255ths(epsilon).replace("/", "-") if norm == "linf" else f"{epsilon:g}"
    return f"{images}-{slug(config.model.name)}-{norm}-{radius}"


@dataclass(frozen=True)
class Contender:
    """What decides about the alias. number: robust accuracy on validation, mean over seeds; measured: under which attacks."""

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


def objection(new: Contender, present: Mapping[str, str] | None) -> str:
    """Return why a new version must not replace the present champion, "" where it may.

    present: tags of the version that holds the alias, None where no version does.
    """
    if present is None:
        return ""
    ours = new.tags
    if differing := [word for tag, word in COMPARED.items() if present.get(tag) != ours[tag]]:
        return f"the present one was measured with another {' and another '.join(differing)}, so the two cannot be compared"
    if float(present[NUMBER]) >= float(ours[NUMBER]):
        return f"the present one has {100 * float(present[NUMBER]):.1f} % robust accuracy on validation, this one {100 * new.number:.1f} %"
    return ""
