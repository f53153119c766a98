"""The importer of PyTorch's exported programs and FX graphs. Everything here needs torch.
"""
