"""`MultiHeadAttention` joins its projections only where nobody would notice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from regard.nn import MultiHeadAttention

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

LENGTHS = {"apart": 2, "joined": 60}  # 16 numbers each, and 768 weights


class Adapted(nn.Linear):
    """A projection with something learned beside it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.flip(-1)


class Wrapped(nn.Module):
    """The same around a projection; it has no weight of its own."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x) + x.flip(-1)


def subclassed(module: Any) -> None:
    adapted = Adapted(16, 16)
    adapted.load_state_dict(module.k_proj.state_dict())
    module.k_proj = adapted


def wrapped(module: Any) -> None:
    module.k_proj = Wrapped(module.k_proj)


def replaced(module: Any) -> None:
    forward = module.k_proj.forward
    module.k_proj.forward = lambda x: forward(x) + x.flip(-1)


def hooked(module: Any) -> None:
    module.k_proj.register_forward_hook(lambda _, args, out: out + args[0].flip(-1))


def hooked_before(module: Any) -> None:
    module.k_proj.register_forward_pre_hook(lambda _, args: (args[0].flip(-1),))


def pruned(module: Any) -> None:
    prune.l1_unstructured(module.k_proj, "weight", 0.5)  # type: ignore[no-untyped-call]
    module.k_proj.weight_orig.data.mul_(2)  # which the weight follows when the module is called


def normed(module: Any) -> None:
    parametrizations.weight_norm(module.k_proj)
    module.k_proj.parametrizations.weight.original0.data.mul_(2)


def without_a_bias(module: Any) -> None:
    module.v_proj.bias = None  # that of keys changes nothing


def by_calls(module: Any, x: Tensor) -> Tensor:
    """Attention whose projections are called."""
    q, k, v = (
        p(x).view(*x.shape[:-1], 4, 4).transpose(-2, -3)
        for p in (module.q_proj, module.k_proj, module.v_proj)
    )
    context = nn.functional.scaled_dot_product_attention(q, k, v)
    found: Tensor = module.o_proj(context.transpose(-2, -3).flatten(-2))
    return found


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_projections_of_two_dtypes_are_as_pytorchs(length: int) -> None:
    module = MultiHeadAttention(16, 4)
    module.k_proj.half()
    with pytest.raises(RuntimeError, match="same dtype"):
        module(torch.randn(1, length, 16))


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(
    "change",
    [subclassed, wrapped, replaced, hooked, hooked_before, pruned, normed, without_a_bias],
)
def test_a_changed_projection_is_called(change: Callable[[Any], None], length: int) -> None:
    torch.manual_seed(0)
    module, x = MultiHeadAttention(16, 4), 3 * torch.randn(1, length, 16)
    nn.init.normal_(module.v_proj.bias)
    before = module(x)
    change(module)
    torch.testing.assert_close(module(x), by_calls(module, x))
    assert not torch.allclose(module(x), before, atol=1e-3)


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_hooks_of_all_modules_and_of_gradients_are_called(length: int) -> None:
    module, x, called = MultiHeadAttention(16, 4), torch.randn(1, length, 16), []
    everywhere = nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: called.append(module)
    )
    with everywhere:
        module(x)
    module.v_proj.register_full_backward_hook(lambda module, *_: called.append("backward"))
    module(x.requires_grad_()).sum().backward()
    assert {module.q_proj, module.k_proj, module.v_proj} <= set(called[:-1])
    assert called[-1] == "backward"


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_joined_or_apart(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mere products are joined where that is worth it."""
    module, x, joined = MultiHeadAttention(16, 4), torch.randn(1, length, 16), []
    cat = torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts: joined.append(len(parts)) or cat(parts))
    torch.testing.assert_close(module(x), by_calls(module, x))
    assert joined == ([3, 3] if length == LENGTHS["joined"] else [])


class TestFromTorch:
    @pytest.mark.parametrize("options", [{}, {"kdim": 10}], ids=["packed", "separate"])
    def test_what_is_frozen_stays_frozen(self, options: dict[str, int]) -> None:
        theirs = nn.MultiheadAttention(16, 4, **options).requires_grad_(False)
        theirs.out_proj.weight.requires_grad_()
        with torch.no_grad():
            ours = MultiHeadAttention.from_torch(theirs)
        learning = [name for name, p in ours.named_parameters() if p.requires_grad]
        assert learning == ["o_proj.weight"]
        assert all(p.is_leaf for p in ours.parameters())

    def test_what_learns_goes_on(self) -> None:
        ours = MultiHeadAttention.from_torch(nn.MultiheadAttention(16, 4))
        assert all(p.requires_grad for p in ours.parameters())


class TestSlopes:
    def test_no_cast_rounds_them(self) -> None:
        module = MultiHeadAttention(48, 12, alibi=True)
        slopes = module.slopes
        assert slopes is not None
        exact = slopes.clone()
        for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
            module.to(dtype)
            assert torch.equal(module.slopes, exact)
            assert module(torch.randn(1, 3, 48, dtype=dtype)).dtype is dtype

    def test_reset_after_memory_that_holds_nothing(self) -> None:
        exact = MultiHeadAttention(48, 12, alibi=True).slopes
        with torch.device("meta"):
            module = MultiHeadAttention(48, 12, alibi=True)
        module.to_empty(device="cpu")
        assert torch.equal(module.slopes, exact)
        module.slopes.fill_(7)
        module.reset_parameters()
        assert torch.equal(module.slopes, exact)
