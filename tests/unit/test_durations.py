"""What grew in the figures of the test suite."""

from tests.durations import grown


def test_only_files_that_take_noticeably_more_are_named_the_largest_growth_first() -> None:
    before = {"a": {"cpu_s": 1.0}, "b": {"cpu_s": 10.0}, "c": {"cpu_s": 20.0}}
    now = {"a": {"cpu_s": 1.9}, "b": {"cpu_s": 14.0}, "c": {"cpu_s": 21.5}, "new": {"cpu_s": 9.0}}
    assert grown(before, now) == ["    0.0 ->     9.0 CPU s  new", "   10.0 ->    14.0 CPU s  b"]
