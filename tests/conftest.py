"""What holds for all tests: one thread, here and in the commands they start.

The images are tiny: threads would only wait for each other, and on a busy machine for minutes.
"""

import os

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
