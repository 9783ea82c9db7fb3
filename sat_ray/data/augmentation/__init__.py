"""Random changes of training images: crops and flips, RandAugment, random erasing, mixing."""
