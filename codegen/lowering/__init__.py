"""A fused region to a kernel: the hero's operands and the stores as expressions over loop axes."""
