# What every stock board has in its firmware, and nothing of the agent.
include("$(MPY_DIR)/extmod/asyncio")
freeze(".", "_boot.py")
