"""Training at one site between two exchanges with the federation."""
