"""Smooth adversarial training (Xie et al. 2020, arXiv 2006.14536) at any scale, and its proof by exact PGD-200."""

__version__ = "0.1.0"
