"""Memory of processes that use GPUs, which are pretended."""

import pytest

from ral_system.observability import memory


class Gpus:
    """PyTorch's module for GPUs, with a peak for each."""

    def __init__(self, *peaks: int) -> None:
        self.peaks = list(peaks)

    def device_count(self) -> int:
        return len(self.peaks)

    def max_memory_allocated(self, gpu: int) -> int:
        return self.peaks[gpu]

    def reset_peak_memory_stats(self, gpu: int) -> None:
        self.peaks[gpu] = 2**29


def test_the_peak_is_that_of_the_fullest_gpu_and_every_one_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(2**30, 3 * 2**30)
    monkeypatch.setattr(memory, "_cuda", lambda: gpus)
    assert memory.take_peak_gib() == 3
    assert gpus.peaks == [2**29, 2**29] and memory.peak_gib() == 0.5
