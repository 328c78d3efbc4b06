"""The command line of programs that take no Hydra overrides."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from ral_system import __version__


class Parser(argparse.ArgumentParser):
    """Argument parser that keeps line breaks in help, knows `--version`, and answers a wrong argument with one line and
    exit code 2.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        version = f"ral-system {__version__}"
        self.add_argument("--version", action="version", version=version, help="print the version and exit")

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where to find help, and exit."""
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)
