"""``python -m zkc``: the same as the ``zkc`` command."""

import sys

from zkc.ui.cli.main import main

sys.exit(main())
