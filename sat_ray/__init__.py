"""Smooth adversarial training (Xie et al. 2020, arXiv 2006.14536), with exact PGD-200."""

import os

__version__ = "0.1.0"

# MKL reads this at its first product. Without it, a row of features gets other bits at another
# place of the batch where their number is no multiple of 4.
os.environ.setdefault("MKL_CBWR", "AUTO")
