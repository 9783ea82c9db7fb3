"""evaluate.py --model: attack a model that was made elsewhere."""
