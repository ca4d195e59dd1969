"""fastopt beside other libraries on the same work: `python -m benchmarks`."""

import sys
from pathlib import Path

# `python -m` puts the checkout first, where fastopt is source; an installed fastopt comes before it
_root = str(Path(__file__).resolve().parent.parent)
sys.path = [folder for folder in sys.path if folder not in ("", _root)] + [_root]
