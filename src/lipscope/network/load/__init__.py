"""How a user's model becomes a `Graph`: one file per source format, one vocabulary (`Lowering`) for all of them."""
