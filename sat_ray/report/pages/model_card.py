"""The card beside an exported model: what it is, its training, its robustness, how to load it."""

from collections.abc import Mapping
from typing import Any

from sat_ray.report.formatting import attack_text, interval, pgd_name, points, threat_text
from sat_ray.report.leaderboard.groups import PGD, STRONG
from sat_ray.report.leaderboard.strong import OVERESTIMATED

LOADING = {
    "pt2": (
        "python",
        "import torch\n\n"
        "# The graph is in inference mode: do not call .eval().\n"
        "model = torch.export.load({file!r}).module()\n"
        "logits = model(images)  # images: (N, {shape}) float32 in [0, 1]",
    ),
    "onnx": (
        "python",
        "import onnxruntime\n\nsession = onnxruntime.InferenceSession({file!r})\n"
        "# images: (N, {shape}) float32 in [0, 1]\n"
        'logits = session.run(None, {{"images": images}})[0]',
    ),
}


def model_card(
    *,
    name: str,
    file: str,
    kind: str,
    spec: Mapping[str, Any],
    shape: tuple[int, ...],
    about: Mapping[str, Any],
    sha256: str,
    parity: str,
    board: Mapping[str, Any] | None,
    row: Mapping[str, Any] | None,
    card: Mapping[str, Any] | None,
    config: Mapping[str, Any] | None,
) -> str:
    """Write the card as Markdown.

    spec, about, sha256: of the checkpoint; shape: (C, H, W); board, row: leaderboard and the
    model's row in it; card: its robustness card; config: of the sweep. They are None for a model
    without a finished sweep, and the card says so.
    """
    size = f"{shape[0]}, {shape[1]}, {shape[2]}"
    classes = spec["num_classes"]
    what = (
        f"{spec['name']} with {name}, {classes} classes; images (N, {size}) in [0, 1] pixels to "
        f"logits (N, {classes})."
    )
    language, text = LOADING[kind]
    parts = [
        f"# {name}",
        f"{what} Standardisation is part of the model.",
        "## How it was trained",
        _training(config, about, board),
        "## How robust it is",
        _robustness(board, row),
        _verdict(card, quoted=row is None or row.get(STRONG) is None),
        "## Limits",
        "- The figures hold for this threat model, this dataset and these attacks; another norm or "
        "a larger radius is another question.\n"
        "- They are of images like those it was trained on: nothing is known about other sources, "
        "corruptions or shifts.\n"
        "- A robust accuracy is what no attack tried so far has broken. It is an upper bound.",
        "## How to load it",
        f"```{language}\n{text.format(file=file, shape=size)}\n```",
        f"Weights sha256 `{sha256}`. Parity with the checkpoint, {parity}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _training(
    config: Mapping[str, Any] | None, about: Mapping[str, Any], board: Mapping[str, Any] | None
) -> str:
    epoch = about.get("epoch", "unknown")
    seed = f"Seed {about.get('seed', 'unknown')}, best epoch {epoch} by validation."
    if config is None or board is None:
        return f"The sweep that trained it is not beside the checkpoint. {seed}"
    training = config["training"]
    return (
        f"Adversarial training on {board['dataset']}: {training['epochs']} epochs against "
        f"PGD-{training['attack_steps']}, "
        f"{threat_text(board)}, "
        f"batches of {training['global_batch_size']}, "
        f"learning rate {training['learning_rate']:g}. {seed} Sweep {board['sweep']}."
    )


def _robustness(board: Mapping[str, Any] | None, row: Mapping[str, Any] | None) -> str:
    if board is None or row is None:
        return (
            "Not measured: no leaderboard names this checkpoint. Evaluate it first "
            "(`sat-ray evaluate --model`)."
        )
    setting = f"under {threat_text(board)}, {attack_text(board)}"
    rest = f"on n = {row['n']} test images; clean accuracy {points(row['clean_accuracy'])} %."
    pgd = _with_interval(row, PGD)
    if row.get(STRONG) is None:
        return f"Robust accuracy {pgd} {setting}, {rest}"
    warning = ""
    if row["pgd_flatters"]:
        warning = f" {OVERESTIMATED.replace('row', 'model')}: do not quote that number."
    return (
        f"Robust accuracy {_with_interval(row, STRONG)} {setting} and "
        f"{board['strong_attack']['name']}, {rest} "
        f"Under {pgd_name(board)} alone, the paper's measure: {pgd}.{warning}"
    )


def _with_interval(row: Mapping[str, Any], measure: str) -> str:
    return f"{points(row[measure])} % (95 % interval {interval(row[f'{measure}_interval'])})"


def _verdict(card: Mapping[str, Any] | None, *, quoted: bool) -> str:
    """Say what the robustness card found.

    quoted: there is no strong number on test images, so the cascade's is the one to quote.
    """
    if card is None:
        return "No robustness card was made for this model."
    flagged = "".join(f"\n- {reason}" for reason in card["reasons"])
    quote = ", which is the figure to quote" if quoted else ""
    return (
        f"Robustness card: **{card['verdict']}**; a cascade of stronger attacks leaves "
        f"{points(card['ladder']['cascade'])} % of {card['n']} validation images{quote}.{flagged}"
    )
