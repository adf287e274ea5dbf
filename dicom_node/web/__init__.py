"""The node's REST interface and console: loopback, token-protected, nothing identified in any answer."""
