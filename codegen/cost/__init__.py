"""A model of the time that kernels take on a card, fitted to measurements. What it gives is *modelled*."""
