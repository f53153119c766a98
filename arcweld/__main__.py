"""``python -m arcweld`` is ``onnx-to-engine``."""

import sys

from arcweld.cli.app import main

sys.exit(main())
