"""`python -m ailora.cli`, as launchers of several processes start it."""

import os
import sys

# The current folder may hold anything: `ailora` does not import from it either.
if not sys.flags.safe_path and sys.path[0] == os.getcwd():
    del sys.path[0]

from ailora.cli import main

main()
