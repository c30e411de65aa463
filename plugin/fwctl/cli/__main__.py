"""`python -m plugin.fwctl.cli`: fwctl from a checkout."""

import sys

from plugin.fwctl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
