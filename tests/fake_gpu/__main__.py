"""ganlab's command line on the fake device:  python -m fake_gpu train device=cuda ...  (PYTHONPATH=tests)."""

import sys

from fake_gpu.device import patch
from ganlab.cli import main

patch()
sys.exit(main(sys.argv[1:]))
