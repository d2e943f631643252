"""What all tests share: one table of networks, slow obvious oracles, helpers that raise."""
