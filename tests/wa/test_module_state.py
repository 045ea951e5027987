"""An average as the `state_dict()` of a whole module."""

import copy
import io

import pytest
import torch
from torch import nn

from wa import EMA, Bank


class Parts(nn.Module):
    """Ties under two names, buffers that are kept and one that is not, extra state, a frozen part."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.note = "made"

    def forward(self, x):
        return self.head(self.frozen(self.norm(self.embed(x))))

    def get_extra_state(self):
        return {"note": self.note}

    def set_extra_state(self, state):
        self.note = state["note"]


@pytest.mark.parametrize("policy", ["live", "average", "recompute"])
def test_module_state_is_the_model_s_own_under_the_average(policy):
    torch.manual_seed(0)
    model = Parts()
    scheme = EMA(0.7, buffers=policy)
    bank = Bank(model, [scheme])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    tokens = torch.randint(7, (32,))
    for step in range(1, 8):
        model(tokens).square().mean().backward()
        optimizer.step()
        model.note = f"step {step}"
        bank.update(step)
    forwards = (lambda m: (m(tokens) for _ in range(2))) if policy == "recompute" else None
    live = copy.deepcopy(model.state_dict())
    state = bank.module_state(scheme, recompute=forwards)
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(live[n], t) for n, t in model.state_dict().items() if n != "_extra_state")
    assert state["head.weight"].data_ptr() == state["embed.weight"].data_ptr()
    held = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert held.isdisjoint(t.data_ptr() for n, t in state.items() if n != "_extra_state")
    fresh = Parts()
    fresh.load_state_dict(state, strict=True)
    assert fresh.note == "step 7"
    model.eval(), fresh.eval()
    with bank.swapped(scheme, recompute=forwards), torch.no_grad():
        expected = model(tokens)
    assert torch.equal(fresh(tokens), expected)
    assert not torch.equal(model(tokens), expected)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert torch.load(file, weights_only=True).keys() == state.keys()


def test_module_state_says_what_swapped_would():
    bank = Bank(nn.BatchNorm1d(3), [EMA(0.5, buffers="recompute"), EMA(0.7)])
    with pytest.raises(KeyError, match="absent"):
        bank.module_state(EMA(0.7))
    bank.update(1)
    with pytest.raises(ValueError, match="needs recompute="):
        bank.module_state(EMA(0.5, buffers="recompute"))
    with bank.swapped(EMA(0.7)), pytest.raises(RuntimeError, match="while an average is swapped in"):
        bank.module_state(EMA(0.7))
