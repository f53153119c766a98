"""Convolutions: as implicit matrix products on the contract family's algorithms, and depthwise."""
