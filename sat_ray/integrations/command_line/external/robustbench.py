"""--protocol robustbench: the leaderboard's balls, its entry, and the model as it loads there.

The files are robustbench/NAME.json, the entry; NAME.pt2, the exported model; and NAME.py, which
loads that with torch alone. What only a paper can say is left empty.
"""

import json
import re
import sys
from keyword import iskeyword
from string import Template
from typing import Any

from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.integrations.command_line.external.subject import Subject
from sat_ray.models.export import export_model
from sat_ray.models.normalized import Normalized
from sat_ray.report.console import Reporter
from sat_ray.storage.store import Storage
from sat_ray.threat import ThreatModel, length_text
from sat_ray.utils.import_string import first_line

FOLDER = "robustbench"
CIFAR = (3, 32, 32)
BOARDS: dict[str, tuple[ThreatModel, ...]] = {
    "cifar10": (ThreatModel("linf", 8 / 255), ThreatModel("l2", 0.5)),
    "cifar100": (ThreatModel("linf", 8 / 255),),
    "imagenet": (ThreatModel("linf", 4 / 255),),
}
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
SHORT_SIDE, SIDE = 256, 224  # of ImageNet's test images
USED = ("Path", "nn", "torch")  # names in the definition
TO_FILL_IN = ("link", "name", "authors", "venue", "additional_data", "dataset", "architecture")

DEFINITION = Template('''\
"""$name for RobustBench: pixels in [0, 1] (N, $shape) to (N, $classes) logits.

$measured

It needs torch and $name.pt2 beside this file. For the model zoo:
("$name", {"model": $name})
"""

from pathlib import Path

import torch
from torch import nn


class $name(nn.Module):
    """The exported network. Its layers are in inference mode, whatever train() says."""

    def __init__(self, file=Path(__file__).with_suffix(".pt2"), device="cpu"):
        super().__init__()
        program = torch.export.load(file)
        if torch.device(device).type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        self.network = program.module()
        for module in self.modules():
            module.training = False

    def train(self, mode=True):
        return self

    def forward(self, x):
        return self.network(x)
''')


def board_of(subject: Subject) -> str:
    """Return the leaderboard of the images: by name, else by shape and classes; "" for none."""
    manifest = subject.dataset.manifest
    if manifest.get("dataset") in BOARDS:
        return str(manifest["dataset"])
    small = tuple(manifest["shape"]) == CIFAR
    likely = ("cifar10", "cifar100") if small else ("imagenet",)
    colour = manifest["shape"][0] == 3 and (small or min(manifest["shape"][1:]) >= 224)
    return next((one for one in likely if colour and CLASSES[one] == subject.classes), "")


def check_board(given: ExternalOptions, subject: Subject) -> None:
    """Raise ValueError where a leaderboard has no such norm and epsilon, or other test images.

    Images of an .npz are taken as they are.
    """
    balls = BOARDS.get(board_of(subject), ())
    if balls and given.threat_model not in balls:
        raise ValueError(
            f"--protocol robustbench has {' and '.join(map(str, balls))} for "
            f"{board_of(subject)}, got {given.threat_model}; give one of them, or "
            "--attack autoattack without --protocol"
        )
    if board_of(subject) == "imagenet":
        check_images(given, subject.dataset.manifest)


def check_images(given: ExternalOptions, manifest: dict[str, Any]) -> None:
    """Raise ValueError where image files were not resized and cut as published figures need it."""
    resize = given.image_resize
    options = f"--image-size {SIDE} --image-crop {SIDE / SHORT_SIDE}"
    if "encoding" in manifest:  # prepared, not read by this command
        resize = manifest.get("test_images", {}).get("resize", 0)
        options = f"--data.image-size {SIDE} --data.test-crop {SIDE / SHORT_SIDE}"
    elif given.image_size is None:
        return
    if resize != SHORT_SIDE or manifest["shape"][1:] != [SIDE, SIDE]:
        raise ValueError(
            f"--protocol robustbench needs ImageNet's test images resized to {SHORT_SIDE}, cut to "
            f"{SIDE} and never compressed again, got data {given.data} that was stored otherwise; "
            f"prepare it with {options}"
        )


def write_submission(
    given: ExternalOptions,
    subject: Subject,
    found: dict[str, Any],
    storage: Storage,
    reporter: Reporter,
) -> None:
    """Write the entry, the exported model and its definition, and say where they are.

    found: the contents of evaluation.json. A model that torch.export cannot trace gets the entry
    alone.
    """
    name = definition_name(given.name or given.weights or given.model)
    entry = entry_of(given, subject, found)
    # not sorted: the leaderboard's entries have this order
    storage.write(f"{FOLDER}/{name}.json", f"{json.dumps(entry, indent=2)}\n".encode())
    empty = ", ".join(field for field in TO_FILL_IN if not entry[field])
    reporter.say(f"entry: {storage.full(f'{FOLDER}/{name}.json')}; fill in {empty}")
    shape = subject.dataset.manifest["shape"]
    try:
        data, parity = export_model(subject.model, shape=shape, kind="pt2")
    except (ValueError, ArithmeticError, RuntimeError) as error:
        reporter.say(f"warning: no model definition was written: {first_line(error)}")
        return
    text = DEFINITION.substitute(
        name=name,
        shape=", ".join(map(str, shape)),
        classes=subject.classes,
        measured=_measured(entry, found),
    )
    storage.write(f"{FOLDER}/{name}.pt2", data)
    storage.write(f"{FOLDER}/{name}.py", text.encode())
    reporter.say(f"model definition: {storage.full(f'{FOLDER}/{name}.py')}; {parity}")


def entry_of(given: ExternalOptions, subject: Subject, found: dict[str, Any]) -> dict[str, Any]:
    """Return the leaderboard's entry in the order of its fields; None and "" are to be filled in.

    "reported" is this evaluation's own figure, which is the same attack's.
    """
    board = board_of(subject)
    robust = f"{100 * found['robust_accuracy']:.2f}"
    spec = subject.model.spec if isinstance(subject.model, Normalized) else None
    entry: dict[str, Any] = {
        "link": "",
        "name": "",
        "authors": "",
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": board or subject.dataset.manifest.get("dataset", ""),
        "venue": "",
        "architecture": "" if spec is None else spec.name,
        "eps": length_text(given.norm, given.epsilon),
        "clean_acc": f"{100 * found['clean_accuracy']:.2f}",
        "reported": robust,
        "autoattack_acc": robust,
        "unreliable": False,
    }
    if found["n"] != IMAGES.get(board):
        entry["footnote"] = f"Measured on the {_which(found)}."
    return entry


def _which(found: dict[str, Any]) -> str:
    if found["n"] == found["n_split"]:
        return f"{found['n']:,} test images"
    return f"first {found['n']:,} of {found['n_split']:,} test images"


def _measured(entry: dict[str, Any], found: dict[str, Any]) -> str:
    norm = found["threat_model"]["norm"]
    return (
        f"Accuracy {entry['clean_acc']} %, {entry['autoattack_acc']} % under AutoAttack's standard "
        f"version,\n{norm} {entry['eps']}, on the {_which(found)}."
    )


def definition_name(text: str) -> str:
    """Return a name for a class and its module, made of the last part of a path or a name.

    Words of Python and names of its own modules and torch are none: a file random.py beside the
    user's code would take the place of Python's.
    """
    last = re.split(r"[/:]", text.rstrip("/"))[-1]
    words = re.findall(
        r"[A-Za-z0-9]+", re.sub(r"(\.(pt2|pt|pth|pkl|ckpt|bin|tar|safetensors))+$", "", last)
    )
    name = "_".join(words)
    taken = iskeyword(name) or name in sys.stdlib_module_names or name in USED
    return f"Model_{name}" if taken or not name or name[0].isdigit() else name
