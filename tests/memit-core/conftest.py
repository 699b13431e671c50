from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _leave_torch_as_it_was() -> Iterator[None]:
    """Run on one thread, and prove that nothing here touches torch's global state."""
    torch.set_num_threads(1)
    state = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), state), "the global RNG was used"
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
