import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Views do not depend on it, and threads that wait for each other crawl on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
