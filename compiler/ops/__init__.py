"""The operator registry and its entries, one file for each group of operators.

Importing anything from this package registers all entries.
"""

import arcweld.compiler.ops.table  # noqa: F401
