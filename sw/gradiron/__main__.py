"""`python -m gradiron` is the command `gradiron`."""

from __future__ import annotations

import sys

from gradiron.cli import main

if __name__ == "__main__":
    sys.exit(main())
