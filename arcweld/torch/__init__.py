"""The backend of ``torch.compile``: partitions of a graph, engines for them, and what stays in PyTorch."""
