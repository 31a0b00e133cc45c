"""`python -m flowfactory`."""

import sys

from flowfactory.cli.main import main

sys.exit(main())
