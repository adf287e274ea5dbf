"""Attacks that a hospital runs on its own would-be updates before it shares any."""
