"""Branch and bound on the pieces of piecewise linear networks; the mathematics is in `docs/certificate.md`, rule `branch`."""
