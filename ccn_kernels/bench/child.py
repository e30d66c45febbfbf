"""`python -m ccn_kernels.bench.child SETTINGS`: the measuring process that `ccn bench` starts."""

import sys

from .work import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
