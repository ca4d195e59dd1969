"""How fast fastopt is: `python -m benchmarks` beside other libraries and the machine's peak, `benchmarks.kernels` each
kernel alone, `benchmarks.threads` beside a busy process, `benchmarks.memory` what a fit takes,
`benchmarks.reliability` what denormals and checks cost, `benchmarks.commits` one revision beside another. Each says
more with --help."""

import sys
from pathlib import Path

# `python -m` puts the checkout first, where fastopt is source; an installed fastopt comes before it
_root = str(Path(__file__).resolve().parent.parent)
sys.path = [folder for folder in sys.path if folder not in ("", _root)] + [_root]
