"""`python -m tdn_interop.app.cli`: the command without its script."""

from tdn_interop.app.cli import main

main()
