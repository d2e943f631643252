"""Bounds from quadratic constraints on the activations (LipSDP-Neuron), without a semidefinite solver.

The inequality (Fazlyab et al., arXiv 1906.04893, in the slope form): along any two inputs the differences `v` before and `u`
after a function with slopes in [alpha, beta] satisfy `(u - alpha v)(beta v - u) >= 0`. If multipliers `lambda >= 0` make

    rho |u_0|^2 + 2 sum_j lambda_j (u_j - alpha_j v_j)(beta_j v_j - u_j)(-1) - |F u|^2 >= 0   for all u,

then `|F u|^2 <= rho |u_0|^2`: every such pair (rho, lambda) is a certificate, whatever found it.
"""
