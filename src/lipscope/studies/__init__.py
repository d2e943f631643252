"""Studies: claims about Lipschitz continuity, rerun on small data; one folder each, made from the public API only."""
