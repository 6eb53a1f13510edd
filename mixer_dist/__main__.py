"""`python -m mixer_dist` is `mixer-dist`."""

import sys

from mixer_dist.cli import main

sys.exit(main())
