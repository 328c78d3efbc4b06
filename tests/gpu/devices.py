"""Devices of the tests in this folder: a GPU, and for what is cheap also a CPU, where `make test` runs it."""

import pytest
import torch

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, a learner uses it")
DEVICES = [pytest.param("cpu", marks=CPU), pytest.param("cuda", marks=GPU)]
