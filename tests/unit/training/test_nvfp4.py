"""NVFP4: exact on what it can represent, close on what it cannot, and the same in training as on disk."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from training import nvfp4  # noqa: E402


def representable(generator: torch.Generator) -> torch.Tensor:
    """A weight [3, 16, 64] made of E2M1 values, E4M3 scales and a power-of-two global scale."""
    values = torch.tensor(nvfp4.E2M1_VALUES)[torch.randint(8, (3, 16, 4, 16), generator=generator)]
    values[..., 0] = 6.0  # the largest value of each group fixes its scale
    signs = torch.randint(2, values.shape, generator=generator) * 2.0 - 1.0
    scale = torch.exp2(torch.randint(-5, 9, (3, 16, 4, 1), generator=generator).float())
    scale[:, 0, 0] = 448.0  # and the largest group fixes the global scale
    return (values * signs * scale).flatten(-2) * 2.0**-12


def test_representable_weights_survive_exactly() -> None:
    weight = representable(torch.Generator().manual_seed(1))
    quantized = nvfp4.quantize(weight)
    assert quantized.codes.shape == (3, 16, 32)
    assert quantized.codes.dtype == torch.uint8
    assert quantized.scale.shape == (3, 16, 4)
    assert quantized.scale.dtype == torch.float8_e4m3fn
    assert quantized.global_scale.tolist() == [2.0**-12] * 3
    assert torch.equal(nvfp4.dequantize(quantized), weight)
    assert torch.equal(nvfp4.dequantize(nvfp4.quantize(weight, search=True)), weight)


def test_low_nibble_is_the_even_column() -> None:
    weight = torch.zeros(16, 16)
    weight[0, :4] = torch.tensor([6.0, -0.5, 0.0, 3.0])
    codes = nvfp4.quantize(weight).codes
    assert codes[0, 0].item() == 0x7 | (0x9 << 4)
    assert codes[0, 1].item() == 0x0 | (0x5 << 4)


def test_global_scale_is_amax_over_2688_for_each_leading_index() -> None:
    weight = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(nvfp4.quantize(weight).global_scale, weight.abs().amax((-1, -2)) / 2688)


def test_ties_go_to_the_even_code() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    assert nvfp4._round_e2m1(ties).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]


def test_error_stays_within_half_a_step_of_the_group() -> None:
    weight = torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(3))
    error = (nvfp4.dequantize(nvfp4.quantize(weight)) - weight).abs().unflatten(-1, (-1, 16))
    amax = weight.abs().unflatten(-1, (-1, 16)).amax(-1, keepdim=True)
    # The coarsest step is 2 of 6, so half a step is amax / 6; the E4M3 scale itself is off by at most 1/16.
    assert (error <= amax / 6 * (1 + 1 / 16) + amax / 16).all()


def test_search_never_makes_a_group_worse() -> None:
    weight = torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(4))

    def group_errors(search: bool) -> torch.Tensor:
        stored = nvfp4.dequantize(nvfp4.quantize(weight, search=search))
        return (stored - weight).square().unflatten(-1, (-1, 16)).sum(-1)

    assert (group_errors(True) <= group_errors(False) + 1e-9).all()
    assert group_errors(True).sum() < 0.9 * group_errors(False).sum()


def test_zero_groups_and_zero_weights_stay_zero() -> None:
    weight = torch.zeros(2, 16, 32)
    weight[1, 0, 0] = 3.0
    quantized = nvfp4.quantize(weight)
    torch.testing.assert_close(nvfp4.dequantize(quantized), weight)
    assert torch.equal(nvfp4.dequantize(quantized) == 0, weight == 0)
    assert quantized.global_scale[0] == 1.0


def test_tiny_groups_beside_large_ones_do_not_vanish_into_nan() -> None:
    weight = torch.full((16, 32), 1e-9)
    weight[0] = 1.0
    assert torch.isfinite(nvfp4.dequantize(nvfp4.quantize(weight))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_sees_what_is_stored(dtype: torch.dtype) -> None:
    weight = torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(5)).to(dtype)
    assert torch.equal(nvfp4.fake_quantize(weight), nvfp4.dequantize(nvfp4.quantize(weight), dtype))


def test_gradient_passes_straight_through() -> None:
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(6), requires_grad=True)
    (nvfp4.fake_quantize(weight) ** 2).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * nvfp4.fake_quantize(weight).detach())


# torch's own tracer instantiates autograd.Function and warns about itself.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")
def test_fake_quantize_traces_as_one_graph() -> None:
    weight = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(7))
    # The eager backend proves there is no graph break without needing a compiler.
    traced = torch.compile(nvfp4.fake_quantize, fullgraph=True, backend="eager")
    assert torch.equal(traced(weight), nvfp4.fake_quantize(weight))


@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (16,), (2, 0, 16)])
def test_refuses_shapes_without_whole_groups(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        nvfp4.quantize(torch.zeros(shape))


def test_refuses_values_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        nvfp4.quantize(torch.full((16, 16), float("nan")))
