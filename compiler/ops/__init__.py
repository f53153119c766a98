"""The operator registry and its entries, one file for each kind of operator.

Whatever is imported from here, the table of entries is complete: this file imports them all.
"""

import arcweld.compiler.ops.table  # noqa: F401
