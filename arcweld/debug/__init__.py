"""Finds out why a model's results are wrong: the kernel, the pass, the nodes, and the smallest model that shows it."""
