"""What can be claimed: norms, regions, bounds and estimates, errors, and safe rounding. Imports nothing of lipscope."""
