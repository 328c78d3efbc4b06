"""Verifiers: how far a given answer is the reference answer, one kind of answer per file.

Each file has one function `score(given, reference, config) -> float` in [0, 1]. An answer that cannot be read scores 0;
a reference that cannot be read is a fault of the data and raises ValueError, which keeps its sample out of the
advantage. They run in processes that can be killed (`rewards.pool`), so none of them bounds its own time or memory.
"""
