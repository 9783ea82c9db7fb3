"""Images beside their adversarial counterparts and the perturbation between them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sat_ray.report.figures.style import INK, head, new_figure

_FACTORS = (1, 1.5, 2, 3, 4, 5, 8, 10, 15, 20, 30, 40, 50, 80, 100, 200)


def adversarial_examples(
    x: NDArray[np.float32],
    x_adv: NDArray[np.float32],
    labels: NDArray[np.int64],
    clean_predictions: NDArray[np.int64],
    adversarial_predictions: NDArray[np.int64],
    class_names: Sequence[str],
    threat_text: str,
) -> Figure:
    """Draw images, adversarial images and magnified perturbations, one column per image.

    x, x_adv: (N, C, H, W) in [0, 1], C 1 or 3; labels and predictions: (N,) indices into
    class_names. Raises ValueError for other shapes.
    """
    if x.shape != x_adv.shape or x.ndim != 4 or x.shape[0] < 1 or x.shape[1] not in (1, 3):
        raise ValueError(
            "x and x_adv must have one shape (N >= 1, C 1 or 3, H, W), got "
            f"{x.shape} and {x_adv.shape}"
        )
    count = x.shape[0]
    delta = np.asarray(x_adv, dtype=np.float64) - np.asarray(x, dtype=np.float64)
    largest = float(np.abs(delta).max())
    factor = magnification(largest)
    figure = new_figure(max(1.15 * count + 1.3, 5.6), 4.75)
    note = (
        f"Perturbation: shown × {factor:g} around mid-grey, which means unchanged. Largest change: "
        f"{largest:.3f} of the pixel range [0, 1]."
    )
    head(figure, "Images and their adversarial counterparts", subtitle=threat_text, note=note)
    panels = figure.subplots(3, count, squeeze=False)
    shown: list[tuple[str, NDArray[Any], NDArray[np.int64] | None]] = [
        ("clean", x, clean_predictions),
        ("adversarial", x_adv, adversarial_predictions),
        (f"perturbation\n× {factor:g}", 0.5 + factor * delta, None),
    ]
    for row, (name, images, predictions) in enumerate(shown):
        for column in range(count):
            _picture(panels[row, column], images[column])
            if predictions is not None:
                _verdict(
                    panels[row, column],
                    class_names,
                    label_index=int(labels[column]),
                    prediction=int(predictions[column]),
                )
        panels[row, 0].set_ylabel(
            name, fontsize=9.5, color=INK, rotation=0, ha="right", va="center", labelpad=8
        )
    return figure


def magnification(largest: float) -> float:
    """Return the largest round factor that keeps a change within half the pixel range."""
    # A change of float32 0.1 is slightly above 0.1; it should still be shown five times.
    return max((factor for factor in _FACTORS if factor * largest <= 0.5 + 1e-4), default=1.0)


def _picture(axes: Axes, image: NDArray[np.floating[Any]]) -> None:
    axes.imshow(
        np.clip(image.transpose(1, 2, 0).squeeze(), 0, 1),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#c8cdd2")


def _verdict(axes: Axes, class_names: Sequence[str], *, label_index: int, prediction: int) -> None:
    """Title an image with the prediction; a sign and the colour say right or wrong."""
    right = prediction == label_index
    text = f"✓ {class_names[prediction]}"
    if not right:
        text = f"✗ {class_names[prediction]} (is {class_names[label_index]})"
    if len(text) > 16:
        text = text.replace(" (is", "\n(is")
    axes.set_title(text, fontsize=8.5, color="#0b5394" if right else "#b5480a", pad=3)
