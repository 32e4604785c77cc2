"""The whole system on one machine: seven sites, one broker, one gateway, three kills."""
