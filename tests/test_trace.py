"""One image's journey: what the tour shows is what the pipeline computes."""

import copy
import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from sweeps import ROOT, WITHOUT_RAY, environment

from pipelines import trace
from pipelines.picture import WIDEST, difference, drawing
from pipelines.recipes import DEFAULT, RECIPES
from pipelines.tour import not_shown
from sat_ray.attacks import make_attack
from sat_ray.checkpoint import save_model
from sat_ray.cli import parse_recipe
from sat_ray.config import SweepConfig
from sat_ray.data.pixels import to_pixels
from sat_ray.data.shards import read_split
from sat_ray.data.split import Split
from sat_ray.evaluation import OUTCOME_SCHEMA, evaluate
from sat_ray.journey import Attacked, Trained, attack_image, attacks_of, batch_with, craft, find, open_trained, start_of, update
from sat_ray.lanes import CLEAN_ERROR, NEVER, run_lanes
from sat_ray.losses import cross_entropy
from sat_ray.models import build_model, view
from sat_ray.randomness import Randomness, permutation
from sat_ray.storage import Storage
from sat_ray.training_settings import TrainingSettings
from sat_ray.units import Dataset

WORDS = (
    *("digits_smoke", "--search.activations", "silu:1", "--search.pairs", "--search.rungs", "2"),
    *("--threat-model.epsilon", "24/255", "--evaluation.steps", "60", "--evaluation.step-size", "4/255", "--evaluation.lanes", "8"),
)


@dataclass(frozen=True, kw_only=True)
class Tour:
    """What the tests share: a model that the tour has trained, and the outcomes of 40 test images under the recipe's attack."""

    config: SweepConfig
    dataset: Dataset
    trained: Trained
    table: pa.Table

    def row(self, *, step: int | None = None) -> dict[str, Any]:
        """Return the first outcome that was broken at this step; None: broken after the start."""
        rows = self.table.to_pylist()
        return next(row for row in rows if row["first_broken_step"] == step or (step is None and row["first_broken_step"] > 0))

    def attacked(self, row: dict[str, Any]) -> Attacked:
        """Attack the image of a row alone."""
        image = find(self.dataset, row["image_id"]).image
        (run,) = attack_image(self.trained.model, image, attacks_of(self.config, self.trained), seed=0, lanes=8)
        return run


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Tour:
    """Train as the tour does and evaluate as the evaluate stage does."""
    scratch = Storage.at(tmp_path_factory.mktemp("tour"))
    config, _, _ = parse_recipe(WORDS, RECIPES, default=DEFAULT, about="", options=trace.Asked())
    dataset = trace.prepared(config, scratch.child("nothing"), scratch)
    trained = open_trained(trace.train_here(config, dataset, scratch), config, dataset)
    some = read_split(Storage.at(dataset.uri), "test").take(slice(0, 40))
    attacks = attacks_of(config, trained)
    table = evaluate(trained.model, some.images, some.labels, some.image_ids, attacks=attacks, seed=0, lanes=8)
    return Tour(config=config, dataset=dataset, trained=trained, table=table)


@pytest.mark.parametrize("step", [None, NEVER, CLEAN_ERROR])
def test_the_row_shown_is_the_one_that_evaluate_returns_among_other_images(tour: Tour, step: int | None) -> None:
    row = tour.row(step=step)
    image = find(tour.dataset, row["image_id"]).image
    attacks = attacks_of(tour.config, tour.trained)
    alone = evaluate(tour.trained.model, image.images, image.labels, image.image_ids, attacks=attacks, seed=0, lanes=8)
    assert tour.attacked(row).row == row == alone.to_pylist()[0]


@pytest.mark.parametrize("step", [None, NEVER])
def test_the_points_shown_explain_the_row(tour: Tour, step: int | None) -> None:
    row = tour.row(step=step)
    run, image = tour.attacked(row), find(tour.dataset, row["image_id"]).image
    assert [point.step for point in run.points] == list(range(row["passes"]))
    wrong = [point.step for point in run.points if point.prediction != row["label"]]
    assert wrong[:1] == ([row["first_broken_step"]] if step is None else [])
    worst = run.points[-1] if step is None else min(run.points, key=lambda point: point.margin)
    shown = (worst.prediction, worst.margin, pytest.approx(worst.distance))
    assert shown == (row["adversarial_prediction"], row["adversarial_margin"], row["distance"])
    for point in (run.points[0], worst):
        # another batch shape: equal but for rounding
        assert cross_entropy(tour.trained.model(point.x_adv[None]), image.labels).item() == pytest.approx(point.loss, abs=1e-4)
        assert float((point.x_adv - to_pixels(image.images)[0]).abs().max()) == pytest.approx(point.distance, abs=1e-7)


def test_a_survivor_that_retired_early_had_closed_the_cycle_that_is_named(tour: Tour) -> None:
    rows = [row for row in tour.table.to_pylist() if row["robust"] and row["passes"] <= 60]
    run = tour.attacked(rows[0])
    assert run.period > 0
    image = find(tour.dataset, rows[0]["image_id"]).image
    to_the_end = run_lanes(
        tour.trained.model,
        make_attack(run.spec),
        image.images,
        image.labels,
        Randomness(0, image.image_ids),
        lanes=8,
        device=torch.device("cpu"),
        detect_cycles=False,
    )
    assert int(to_the_end.passes) == 61 > rows[0]["passes"]
    assert float(to_the_end.margin) == rows[0]["adversarial_margin"]
    come_back = run.points[run.points[-1].step + 1 - run.period]
    later = _step_alone(tour, run, image)
    assert torch.equal(later, come_back.x_adv)


def _step_alone(tour: Tour, run: Attacked, image: Split) -> torch.Tensor:
    """Move the last point once more, by the formula of PGD, in a batch of the lanes' shape."""
    x, point = to_pixels(image.images).expand(8, -1, -1, -1), run.points[-1].x_adv.expand(8, -1, -1, -1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(tour.trained.model(point), image.labels.expand(8)).sum(), point)
    assert run.spec.step_size is not None
    moved = point.detach() + run.spec.step_size * gradient.sign()
    epsilon = run.spec.threat_model.epsilon
    return torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon).clamp(0, 1)[0]


def test_the_training_attack_shown_is_the_one_that_training_runs(tour: Tour) -> None:
    trained, job = tour.trained, tour.trained.job
    image = find(tour.dataset, 17).image
    x, rng = to_pixels(image.images), Randomness(job.seed, image.image_ids)
    attack = job.training.attack(job.threat_model)
    points = craft(trained, image)
    assert len(points) == attack.steps + 1
    assert torch.equal(points[0].x_adv, start_of(trained, image)[0])
    assert torch.equal(points[0].x_adv, job.threat_model.random_start(x, rng, step=trained.epoch)[0])
    assert torch.equal(points[-1].x_adv, attack.run(view(trained.model), x, image.labels, rng, step=trained.epoch)[0])


def test_the_tour_says_what_it_does_not_show_of_other_recipes_and_nothing_of_the_plain_one() -> None:
    assert not_shown(TrainingSettings()) == []
    for other, wanted in (
        (TrainingSettings(objective="trades"), "TRADES ascends the KL divergence"),
        (TrainingSettings(attack_replays=4), "the gradients of 4 updates"),
        (TrainingSettings(epsilon_warmup=0.3), "epsilon grows over the first 30 %"),
        (TrainingSettings(alpha_start=0.1), "alpha moves from 0.1 times"),
    ):
        text = " ".join(not_shown(other))
        assert text.startswith("not shown here") and wanted in text and text.count(";") == 1


def test_the_update_shown_has_the_loss_of_its_batch_and_leaves_the_model_alone(tour: Tour) -> None:
    trained, job = tour.trained, tour.trained.job
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    place = find(tour.dataset, 17)
    batch = batch_with(tour.dataset, place.image, size=job.training.global_batch_size)
    done = update(trained, place.image, batch, craft(trained, place.image)[-1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.model.state_dict().items())
    train = read_split(Storage.at(tour.dataset.uri), "train")
    assert batch.image_ids.tolist() == [17, *[one for one in train.image_ids.tolist() if one != 17][:63]]
    attack, model = job.training.attack(job.threat_model), copy.deepcopy(trained.model).train()
    rows = permutation(len(batch), seed=job.seed, epoch=trained.epoch).split(job.training.batchnorm_group_size)
    groups = [(part, Randomness(job.seed, part.image_ids)) for part in map(batch.take, rows)]
    crafted = [attack.run(view(model), to_pixels(part.images), part.labels, rng, step=trained.epoch) for part, rng in groups]
    losses = [cross_entropy(model(x_adv), part.labels).detach() for x_adv, (part, _) in zip(crafted, groups, strict=True)]
    assert done.images == len(batch) == 64
    assert done.loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert done.moved > 0 and done.after != done.before


def test_the_split_shown_follows_from_the_hash(tour: Tour) -> None:
    order = sorted(range(1797), key=lambda one: hashlib.sha256(f"digits:{one}".encode()).hexdigest())
    for image_id in (0, 17, 1796):
        place = find(tour.dataset, image_id)
        rank = order.index(image_id)
        assert place.rank == rank and place.total == 1797
        assert place.split == ("test" if rank < 899 else "val" if rank < 899 + 180 else "train")
        assert place.digest == hashlib.sha256(f"digits:{image_id}".encode()).hexdigest()
        same = read_split(Storage.at(tour.dataset.uri), place.split)
        assert torch.equal(place.image.images[0], same.images[same.image_ids.tolist().index(image_id)])


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run the command as a newcomer would, in an empty folder, and return what it prints."""
    folder = tmp_path_factory.mktemp("empty")
    command = [sys.executable, "-c", WITHOUT_RAY, str(ROOT / "pipelines" / "trace.py"), *WORDS, "--image-id", "17"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout


def test_the_command_prints_that_row_and_leaves_nothing_behind(told: str, tour: Tour) -> None:
    place = find(tour.dataset, 17)
    image, attacks = place.image, attacks_of(tour.config, tour.trained)
    (row,) = evaluate(tour.trained.model, image.images, image.labels, image.image_ids, attacks=attacks, seed=0, lanes=8).to_pylist()
    outcome = told[told.index("the outcome") :]
    shown = {name: text for name, text in re.findall(r"^   (\w+) +(\S+)$", outcome, re.M) if name in OUTCOME_SCHEMA.names}
    assert shown == {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in row.items()}


def test_every_step_names_a_line_of_source_that_exists(told: str) -> None:
    heads = re.findall(r"^── (\d+) (.*?) ─+ (.*)$", told, re.M)
    assert [int(number) for number, _, _ in heads] == list(range(1, len(heads) + 1)) and len(heads) >= 11
    for _, title, where in heads:
        for source in where.split():
            path, line = source.rsplit(":", 1)
            text = (ROOT / path).read_text().splitlines()[int(line) - 1]
            assert re.match(r" *(def|class|@)\b|@", text), (title, source, text)


def test_what_cannot_be_shown_is_refused_in_one_line(
    tour: Tour, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(tour.dataset.uri).parent.parent
    colour = build_model("small_resnet", num_classes=5, in_channels=3, width=4, seed=0)
    assert colour.spec is not None
    save_model(Storage.at(tmp_path / "colour"), colour.state_dict(), spec=colour.spec, about={})
    cases = {
        ("--image-id", "1797"): "image id 1797 is not in digits; allowed: 0 to 1796",
        ("--image-id", "-1"): "image id -1 is not in digits; allowed: 0 to 1796",
        ("--image-id", "many"): "many",
        ("--imageid", "3"): "did you mean --image-id",
        ("--checkpoint", str(tmp_path / "nowhere")): "give the folder of a checkpoint",
        ("--checkpoint", str(tmp_path / "colour")): "takes 3 channels and has 5 classes; allowed for digits: 1 and 10",
    }
    for words, wanted in cases.items():
        monkeypatch.setattr(sys, "argv", ["trace.py", *WORDS, *words, "--storage", str(root)])
        assert trace.main() == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.splitlines()) == 1 and wanted in error


def test_a_picture_has_two_characters_per_pixel_and_is_thinned_where_wide() -> None:
    ramp = torch.linspace(0, 1, 4).view(1, 1, 4).expand(1, 3, 4)
    assert drawing(ramp) == ["  --**@@"] * 3
    assert drawing(torch.zeros(1, 2, 2)) == [" " * 4] * 2 and drawing(torch.ones(3, 2, 2)) == ["@" * 4] * 2
    assert difference(torch.tensor([[[0.1, -0.1, 0.01]]]), epsilon=0.1) == ["++--.."]
    wide = drawing(torch.rand(3, 64, 224))
    assert len(wide[0]) <= 2 * WIDEST and len(wide) <= WIDEST
