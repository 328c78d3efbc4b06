"""`ral-doctor`: what is installed, what is missing, and how to get it."""

from ral_system.launch.doctor.cli import main

__all__ = ["main"]
