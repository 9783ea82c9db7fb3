#!/usr/bin/env python3
"""Export a model to a file that needs none of this code, with a parity check and a model card.

python pipelines/export.py digits --out silu.pt2                   the champion of a sweep in ./runs
python pipelines/export.py digits --format onnx --out silu.onnx    the same for onnxruntime
python pipelines/export.py runs/digits/checkpoints/train/… --out m.pt2      a given checkpoint
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("sat_ray") is None:  # a clone whose package is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from sat_ray.integrations.command_line.export import main

if __name__ == "__main__":
    sys.exit(main(about=__doc__))
