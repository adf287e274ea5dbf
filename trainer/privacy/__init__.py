"""Differential privacy of local training: the noisy step (gradients, noise, training) and what it spends (accountant)."""
