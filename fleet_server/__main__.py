"""``python -P -m fedfleet.fleet_server --config-json FILE``."""

import sys

from fedfleet.fleet_server.main import main

sys.exit(main())
