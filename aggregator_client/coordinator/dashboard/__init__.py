"""The coordinator's dashboard: runs, sites, curves, members and evidence in the browser."""
