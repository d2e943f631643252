"""Frequencies: how a network's sensitivity is spread over the spectrum of its inputs."""
