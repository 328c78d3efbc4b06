"""What trains attention, each objective in a file of its own: `algorithm.attention.objective`."""
