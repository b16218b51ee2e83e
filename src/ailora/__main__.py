"""Entry point of `python -m ailora`, which launchers of several processes use."""

import os
import sys

# The current folder may contain untrusted modules; the command `ailora` does not import from there either.
if not sys.flags.safe_path and sys.path[0] == os.getcwd():
    del sys.path[0]

from ailora.cli import main

main()
