"""`python -m benchmarks` is `ssmkit bench`."""

import sys

from ssmkit.cli import main


if __name__ == "__main__":
    raise SystemExit(main(["bench", *sys.argv[1:]]))
