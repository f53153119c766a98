"""One output element from single elements of the operands: pointwise, and transposition through shared memory."""
