"""The backend of ``torch.compile``: partitions ATen graphs, builds engines for blocks, leaves the rest to PyTorch."""
