"""Accuracy under common corruptions (Hendrycks & Dietterich 2019), computed on the fly."""
