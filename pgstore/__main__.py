"""``python -m pgstore`` is the command ``pgstore``."""

import sys

from .cli import main

sys.exit(main())
