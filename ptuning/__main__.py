"""``python -m ptuning`` is the ``ptuning`` command."""

import sys

from ptuning.edges.cli import main

if __name__ == "__main__":
    sys.exit(main())
