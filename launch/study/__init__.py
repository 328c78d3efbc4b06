"""`ral-study`: several ways to train, each with several seeds; then their table and their differences."""

from ral_system.launch.study.cli import main

__all__ = ["main"]
