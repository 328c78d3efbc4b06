"""What ends the benchmark with one line."""


class PeerError(Exception):
    """A failure that the reader of the line can act on."""
