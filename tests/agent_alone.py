"""The agent's program with a trainer that needs no torch: ``python agent_alone.py --config-json FILE``."""

import sys
from pathlib import Path

from fedfleet.vehicle_agent.main import main

TRAINER = (sys.executable, str(Path(__file__).with_name("agent_trainer.py")), "slow")

if __name__ == "__main__":
    sys.exit(main("agent", sys.argv[1:], trainer=TRAINER))
