"""`python -m tinyalign` is `tinyalign`."""

import sys

from tinyalign.cli import main

if __name__ == "__main__":
    sys.exit(main())
