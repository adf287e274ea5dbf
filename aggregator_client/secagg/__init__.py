"""Secure aggregation: the coordinator learns the sum of the sites' updates and nothing else (docs/secure-aggregation.md)."""
