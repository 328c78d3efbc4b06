"""`ral-doctor`: what is installed, what is missing, and the remedy."""

from ral_system.launch.doctor.cli import main

__all__ = ["main"]
