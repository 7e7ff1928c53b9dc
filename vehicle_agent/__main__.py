"""``python -P -m fedfleet.vehicle_agent --config-json FILE``: one vehicle."""

import sys

from fedfleet.vehicle_agent.main import main

if __name__ == "__main__":
    sys.exit(main("agent"))
