"""--protocol robustbench: AutoAttack's attacks on the first images, the leaderboard's entry, and a
model that loads there without this package.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sat_ray.attacks import autoattack
from sat_ray.data.split import Split
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.evaluation.robustness import evaluate
from sat_ray.integrations.command_line.external import options
from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.integrations.command_line.external.robustbench import (
    board_of,
    check_board,
    check_images,
    definition_name,
)
from sat_ray.integrations.command_line.external.run import evaluate_external
from sat_ray.integrations.command_line.external.subject import identify, open_subject
from sat_ray.integrations.command_line.external.tasks import tasks_of
from sat_ray.models import Normalized
from sat_ray.storage.store import Storage
from sat_ray.sweep.execute.evaluation import evaluate_and_commit
from sat_ray.sweep.records.store import Records
from sat_ray.threat import ThreatModel

FIRST = 20
BALL = ThreatModel("linf", 40 / 255)
LOADED = """
import sys, torch
sys.path.insert(0, "robustbench")
from Mine2026 import Mine2026
model = Mine2026().eval()
x = torch.load("x.pt").requires_grad_()
logits = model(x)
logits.sum().backward()
assert not model.training and "sat_ray" not in sys.modules
torch.save((logits.detach(), x.grad), "there.pt")
"""


@pytest.fixture
def protocol(
    digits_model: Normalized,
    held_out: Split,
    published_network: str,
    tmp_path: Path,
) -> dict[str, Any]:
    """Work in a folder with published weights, their network and images; return the options."""
    torch.save({"state_dict": digits_model.state_dict()}, "weights.pt")
    arrays = {"images": held_out.images.numpy(), "labels": held_out.labels.numpy()}
    np.savez("some.npz", **arrays)
    return {
        "model": published_network,
        "weights": "weights.pt",
        "data": "some.npz",
        "protocol": "robustbench",
        "epsilon": BALL.epsilon,
        "slots": 32,
        "images": FIRST,
        "name": "Mine2026",
        "storage": str(tmp_path / "runs"),
    }


def test_the_protocol_runs_autoattack_on_the_first_images_and_writes_what_the_leaderboard_needs(
    protocol: dict[str, Any],
    digits_model: Normalized,
    held_out: Split,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(options, "STEPS", 4)
    monkeypatch.setattr(options, "QUERIES", 20)
    given = ExternalOptions(**protocol)
    root = Storage(protocol["storage"])
    subject = open_subject(given, root, Path())
    name, _ = identify(given, subject)
    for task in tasks_of(given, subject, name):
        evaluate_and_commit(task, Records(root.child(name)))
    evaluate_external(given)  # finds every shard committed and starts no Ray
    folder = Path(root.child(name).uri)
    found = json.loads((folder / "evaluation.json").read_text())
    some = held_out.take(slice(0, FIRST))
    attacks = autoattack(BALL, num_classes=10, steps=4, queries=20)
    table = evaluate(
        digits_model,
        some.images,
        some.labels,
        list(range(FIRST)),
        attacks=attacks,
        slots=32,
        cascade=True,
    )
    ours = pq.read_table(found["outcomes"]).replace_schema_metadata(None)
    assert ours.combine_chunks().equals(table.combine_chunks())
    assert [one["name"] for one in found["attacks"]] == [one.name for one in attacks]
    robust = 100 * len(robust_image_ids(table)) / FIRST
    entry = json.loads((folder / "robustbench" / "Mine2026.json").read_text())
    assert 0 < float(entry["autoattack_acc"]) == round(robust, 2) < float(entry["clean_acc"])
    assert entry["eps"] == "40/255" and entry["reported"] == entry["autoattack_acc"]
    assert entry["footnote"] == f"Measured on the first {FIRST} of 77 test images."
    assert list(entry)[:3] == ["link", "name", "authors"] and entry["additional_data"] is None
    said = " ".join(capsys.readouterr().out.split())
    assert "fill in link, name, authors, venue, additional_data, architecture" in said

    x = held_out.images[:6].float() / 255
    torch.save(x, folder / "x.pt")
    subprocess.run([sys.executable, "-I", "-c", LOADED], cwd=folder, check=True)
    logits, gradient = torch.load(folder / "there.pt")
    x.requires_grad_()
    expected = digits_model(x)
    expected.sum().backward()
    torch.testing.assert_close(logits, expected.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient, x.grad, atol=1e-4, rtol=1e-4)


def test_the_budgets_are_those_of_the_standard_version(protocol: dict[str, Any]) -> None:
    given = ExternalOptions(**protocol)
    assert given.attacks(num_classes=10) == autoattack(BALL, num_classes=10)
    plain = ExternalOptions(model="m:f", data="d.npz", attack="autoattack", epsilon=BALL.epsilon)
    assert plain.attacks(num_classes=10) == given.attacks(num_classes=10)
    assert plain.in_cascade and given.in_cascade
    assert not ExternalOptions(model="m:f", data="d.npz", attack="fab").in_cascade


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 10}, "--protocol robustbench decides --steps; leave it out"),
        ({"attack": "cascade"}, "--protocol robustbench decides --attack; leave it out"),
        ({"gradient": "bf16"}, "--protocol robustbench decides --gradient; leave it out"),
        ({"protocol": "none", "attack": "autoattack", "restarts": 2}, "--restarts means nothing"),
        (
            {"protocol": "none", "attack": "fab", "gradient": "bf16"},
            "--gradient bf16 means nothing",
        ),
        ({"protocol": "none", "attack": "fab", "loss": "dlr"}, "--loss means nothing to --attack"),
    ],
)
def test_what_the_protocol_decides_is_refused_in_one_line(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ExternalOptions(**{"model": "m:f", "data": "d.npz", "protocol": "robustbench", **change})


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("my_package.nets:make_model", "make_model"),
        ("runs/best-ema.pth.tar", "best_ema"),
        ("s3://bucket/3 nets.safetensors", "Model_3_nets"),
        ("random.pt", "Model_random"),
        ("torch.pt", "Model_torch"),
        ("lambda", "Model_lambda"),
        ("Mine2026", "Mine2026"),
    ],
)
def test_the_definitions_name_is_a_word_that_hides_no_module(given: str, name: str) -> None:
    assert definition_name(given) == name


@pytest.mark.parametrize(
    ("norm", "epsilon", "refused"),
    [("linf", 8 / 255, False), ("l2", 0.5, False), ("linf", 4 / 255, True)],
)
def test_a_ball_that_the_leaderboard_has_not_is_refused(
    norm: Any,
    epsilon: float,
    refused: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "colour_net", raising=False)
    (tmp_path / "colour_net.py").write_text(
        "from sat_ray.models import build_model\n"
        "def net(): return build_model('small_resnet', num_classes=10, width=4, seed=0).eval()\n"
    )
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    np.savez("photos.npz", images=images, labels=np.arange(8))
    given = ExternalOptions(
        model="colour_net:net",
        data="photos.npz",
        protocol="robustbench",
        norm=norm,
        epsilon=epsilon,
        slots=8,
    )
    subject = open_subject(given, Storage(str(tmp_path / "runs")), tmp_path)
    assert board_of(subject) == "cifar10"
    if refused:
        with pytest.raises(ValueError, match=r"has linf 8/255 and l2 0\.5 for cifar10, got linf"):
            check_board(given, subject)
    else:
        check_board(given, subject)


PREPARED = {"shape": [3, 224, 224], "encoding": "jpeg"}
CUT = {"test_images": {"encoding": "raw", "resize": 256}}


@pytest.mark.parametrize(
    ("options_given", "manifest", "remedy"),
    [
        ({}, PREPARED | CUT, ""),
        ({}, PREPARED, "--data.image-size 224 --data.test-crop 0.875"),
        ({}, PREPARED | CUT | {"shape": [3, 256, 256]}, "--data.test-crop 0.875"),
        ({"image_size": 224, "image_crop": 0.875}, {"shape": [3, 224, 224]}, ""),
        ({"image_size": 224}, {"shape": [3, 224, 224]}, "--image-size 224 --image-crop 0.875"),
        ({}, {"shape": [3, 224, 224]}, ""),
    ],
    ids=["prepared", "of an earlier version", "uncut", "a folder", "a folder, uncut", "an npz"],
)
def test_imagenets_test_images_must_be_those_of_published_figures(
    options_given: dict[str, Any], manifest: dict[str, Any], remedy: str
) -> None:
    given = ExternalOptions(model="m:f", data="images", protocol="robustbench", **options_given)
    if not remedy:
        check_images(given, manifest)
        return
    with pytest.raises(ValueError, match=f"prepare it with .*{remedy}"):
        check_images(given, manifest)
