"""The prior's launchers as operators: what PyTorch asks of one, and the bytes of a direct call."""

import os

import pytest
import torch
from torch.library import opcheck

from ddfm_fast.kernels.cpu import operators as cpu
from ddfm_fast.kernels.cpu.attention import attention
from ddfm_fast.kernels.cpu.build import status
from ddfm_fast.kernels.cpu.layer import Layer, pack

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    from ddfm_fast.kernels import conv, group_norm, operators

OPTIONS = dict(
    bias=None, norm=[], skip_weight=None, skip=[], residual=None, groups=0, epsilon=1e-5,
    silu=False, resample="", stride=1, residual_up=False, want_sums=True,
)  # fmt: skip


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.thorough
@pytest.mark.interpreted("tests/kernels/test_layer_operators.py")
def test_in_the_interpreter(assert_interpreted):
    assert_interpreted()


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def maps(*shape, seed=0, dtype=torch.float32):
    x = random(*shape, seed=seed, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def sums_of(x):
    return torch.stack([x.sum((2, 3)), (x * x).sum((2, 3))], 1)[:, None].contiguous()


def with_norm(parts):
    channels = sum(x.shape[1] for x in parts)
    norm = [random(channels, seed=8), random(channels, seed=9)]
    return {"sums": [sums_of(x) for x in parts], "norm": norm, "groups": 32, "silu": True}


def cpu_cases():
    """Name → arguments of ``cpu_layer``: odd sizes, one and three images."""
    for n, height, width in ((1, 7, 5), (3, 16, 27)):
        x, y = maps(n, 32, height, width), maps(n, 64, height, width, seed=1)
        size = f"{n} x {height}x{width}"
        yield (
            f"skip {size}",
            dict(
                parts=[x, y], **with_norm([x, y]), weight=random(32, 96, 3, 3), bias=random(32),
                skip_weight=random(32, 64, 1, 1), skip=[y],
            ),
        )  # fmt: skip
        yield f"up {size}", dict(
            parts=[x], **with_norm([x]), weight=random(32, 32, 3, 3), resample="up",
            residual=x, residual_up=True, want_sums=False,
        )  # fmt: skip
        yield f"down {size}", dict(parts=[x], sums=[], weight=random(40, 32, 3, 3), stride=2)


@pytest.mark.skipif(INTERPRETED, reason="of no kernel of Triton's")
class TestCpu:
    pytestmark = pytest.mark.skipif(status() is not None, reason="the C++ cannot run here")

    @pytest.mark.parametrize("case", [name for name, _ in cpu_cases()])
    def test_a_layer_is_an_operator(self, case):
        opcheck(cpu.cpu_layer, (), {**OPTIONS, **dict(cpu_cases())[case]})

    @pytest.mark.parametrize("n, tokens", [(1, 35), (3, 8)])
    def test_attention_is_an_operator(self, n, tokens):
        q, k, v = random(n, tokens, 3, 4, 16).unbind(2)
        opcheck(cpu.cpu_attention, (q, k, v))
        assert torch.equal(torch.ops.ddfm_fast.cpu_attention(q, k, v), attention(q, k, v))

    def test_a_layer_gives_the_bytes_of_the_direct_call(self):
        x, weight = maps(2, 32, 9, 11), random(48, 32, 3, 3)
        given = with_norm([x])
        norm, sums = given.pop("norm"), given.pop("sums")
        got = cpu.cpu_layer(**{**OPTIONS, **given, "parts": [x], "sums": sums, "norm": norm,
                               "weight": weight})  # fmt: skip
        direct = Layer(pack(weight, True), [x.shape], groups=32, epsilon=1e-5, silu=True)
        wanted = direct([(x, sums[0])], norm=tuple(norm))
        assert all(map(torch.equal, got, wanted))

    def test_a_weight_is_laid_out_again_once_its_values_change(self, monkeypatch):
        packed = []
        monkeypatch.setattr(cpu, "pack", lambda *a: packed.append(a) or pack(*a))
        x, weight = maps(1, 32, 9, 11), random(32, 32, 3, 3)

        def run():
            return cpu.cpu_layer(**{**OPTIONS, "parts": [x], "sums": [], "weight": weight})[0]

        first, again = run(), run()
        assert torch.equal(first, again) and len(packed) == 1
        weight.mul_(2)
        torch.testing.assert_close(run(), 2 * first)
        assert len(packed) == 2

    def test_layouts_die_with_their_weights(self):
        x, kept = maps(1, 32, 9, 11), set(cpu._laid)
        for seed in range(3):
            weight = random(32, 32, 3, 3, seed=seed)
            cpu.cpu_layer(**{**OPTIONS, "parts": [x], "sums": [], "weight": weight})
            del weight
        assert len(set(cpu._laid) - kept) <= 1

    def test_what_a_layer_refuses_its_operator_refuses(self):
        x = maps(1, 32, 9, 11)
        with pytest.raises(ValueError, match="without the sums"):
            cpu.cpu_layer(**{**OPTIONS, "parts": [x], "sums": [], "weight": random(8, 32, 1, 1),
                             "groups": 32, "norm": [random(32), random(32)]})  # fmt: skip


class TestTriton:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("case, n", [("skip", 1), ("up", 3), ("down", 1), ("thin", 3)])
    def test_a_layer_is_an_operator(self, case, n):
        x = maps(n, 32, 6, 10)
        rest = dict(
            moments=[group_norm.moments(x)], norm=[random(32), random(32)], silu=True, resample="",
            stride=1, bias=random(32), skip_weight=None, skip=[], residual=None, residual_size="",
            want_moments=True, tf32=False, weight=random(32, 32, 3, 3),
        )  # fmt: skip
        if case == "skip":
            rest.update(skip_weight=random(32, 32, 1, 1), skip=[x])
        elif case == "thin":
            x = maps(n, 12, 7, 5)
            rest.update(moments=[], norm=[], weight=random(3, 12, 3, 3), bias=None, stride=2)
            rest["want_moments"] = False
        else:
            rest.update(
                resample=case, residual=maps(n, 32, *((12, 20) if case == "up" else (3, 5)))
            )
        opcheck(torch.ops.ddfm_fast.layer, (), {"parts": [x], **rest})

    def test_the_function_gives_the_bytes_of_the_launcher(self):
        x, weight = maps(2, 32, 7, 9), random(64, 32, 3, 3)
        part = conv.Part(x, group_norm.moments(x))
        norm, skip = (random(32), random(32)), random(64, 32)
        got = operators.layer([part], operators.pack(weight), norm=norm, skip=(skip, [x]))
        wanted = conv.layer([part], conv.pack(weight), norm=norm, skip=(conv.pack(skip), [x]))
        assert all(map(torch.equal, got, wanted))

    def test_norms_and_sums_are_operators(self, n=3):
        ops, x, y = torch.ops.ddfm_fast, maps(n, 32, 6, 10), maps(n, 64, 6, 10, seed=1)
        opcheck(ops.moments, (x,))
        opcheck(ops.join_, (x.clone(), random(32), maps(n, 32, 3, 5)), {"upsample": True})
        its = [group_norm.moments(part) for part in (x, y)]
        both = [x, y], its, random(96), random(96), None, True, "up", False
        opcheck(ops.normalize, both)
        opcheck(ops.normalize, ([x], its[:1], random(32), random(32), None, True, "down", True))
        whole = maps(n, 256, 5, 7)
        assert group_norm.suits_whole(whole)
        opcheck(ops.normalize_whole_, (whole, random(256), random(256), random(256)))

    def test_a_norm_gives_the_bytes_of_the_launcher(self):
        x = maps(2, 32, 6, 10)
        part, vectors = (x, group_norm.moments(x)), (random(32), random(32, seed=1))
        options = dict(resample="down", pool_input=True)
        got = operators.normalize([part], *vectors, out=None, **options)
        assert all(map(torch.equal, got, group_norm.normalize([part], *vectors, **options)))
