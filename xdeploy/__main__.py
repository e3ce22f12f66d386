"""`python -m xdeploy`: the command, for torchrun and where no script is installed."""

from __future__ import annotations

import sys

from xdeploy.cli import main

if __name__ == "__main__":
    sys.exit(main())
