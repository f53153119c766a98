"""Folds of axes: reductions, row programs (softmax, norms) and pools."""
