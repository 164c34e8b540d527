"""``python -m zkc``: the same as the ``zkc`` command."""

from zkc.ui.cli.main import console

console()
