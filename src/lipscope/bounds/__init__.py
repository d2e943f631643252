"""Whole-network methods: upper bounds with proofs, lower bounds with witnesses."""
