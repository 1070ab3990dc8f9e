"""``python -m csm_hybrid``: the ``csm-hybrid`` command."""

from .cli import main

main(prog_name="csm-hybrid")
