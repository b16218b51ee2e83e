"""`python -m ailora.cli`, as launchers of several processes start it."""

from ailora.cli import main

main()
