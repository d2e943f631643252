"""Bounds on a region: linear bounds of what units read, and enclosures of the Jacobian."""
