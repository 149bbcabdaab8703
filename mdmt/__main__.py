"""`python -m mdmt`: the same as the console script `mdmt`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
