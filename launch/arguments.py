"""The command line of programs that take no Hydra overrides."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Argument parser that keeps line breaks in help, and answers a wrong argument with one line and exit code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where to find help, and exit."""
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)
