"""python -m finemesh is the command finemesh."""

import sys

from finemesh.cli import main

sys.exit(main())
