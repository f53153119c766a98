"""Convolutions: as implicit matrix products by the contract family's implementations, and depthwise."""
