"""Smooth adversarial training (Xie et al. 2020, arXiv 2006.14536) at any scale, and its proof by exact PGD-200."""

import os

__version__ = "0.1.0"

# MKL's product gives a row of features other bits in another place of the batch, where their number is no multiple of 4; so asked, it does
# not. It reads this at its first product.
os.environ.setdefault("MKL_CBWR", "AUTO")
