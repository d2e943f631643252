"""The network under analysis: `nodes` and `graph` (data), `load` (how a user's model becomes a graph)."""
