"""The PyTorch side: the importer of exported programs and FX graphs, and the ``torch.compile`` backend.

Everything here needs torch; nothing outside this package imports it.
"""
