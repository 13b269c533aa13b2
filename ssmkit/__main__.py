"""`python -m ssmkit` is `ssmkit`."""

import sys

from ssmkit.cli import main


if __name__ == "__main__":
    sys.exit(main())
