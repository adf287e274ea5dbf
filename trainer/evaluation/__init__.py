"""Figures of merit that a hospital can check."""
