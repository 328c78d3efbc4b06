"""Data from outside: files of rows to prompts, with every row accounted for."""
