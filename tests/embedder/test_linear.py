"""Linear layers with narrow weights stay near the exact ones, row by row."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from embedder.errors import ConfigurationError
from embedder.model import int8, linear
from embedder.model.linear import has_tanh_gelu, prepare
from embedder.model.processor import has_fbgemm, keeps_float16_weights, state_type

ROWS, IN, OUT = 23, 96, 40

needs_fbgemm = pytest.mark.skipif(not has_fbgemm(), reason="needs an x86 processor with AVX2")


@pytest.fixture(params=["onednn", pytest.param("fbgemm", marks=needs_fbgemm)])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each library that computes int8 products, as if it were measured to be the faster."""
    name: str = request.param
    monkeypatch.setattr(int8, "fastest_library", lambda: name)
    return name


@pytest.fixture
def float16_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that does not multiply float16."""
    monkeypatch.setattr(linear, "keeps_float16_weights", lambda dtype, _: dtype == "float16")


@pytest.fixture
def weight() -> torch.Tensor:
    """A weight [N, K] with rows of very different sizes."""
    torch.manual_seed(0)
    return torch.randn(OUT, IN) * torch.logspace(-3, 1, OUT)[:, None]


@pytest.fixture
def bias() -> torch.Tensor:
    """A bias [N]."""
    torch.manual_seed(1)
    return torch.randn(OUT)


def inputs(*, after_gelu: bool = False) -> torch.Tensor:
    """Inputs [T, K] with rows of very different sizes."""
    torch.manual_seed(2)
    x = torch.randn(ROWS, IN) * torch.logspace(-2, 2, ROWS)[:, None]
    return functional.gelu(x) if after_gelu else x


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("after_gelu", [False, True])
def test_int8_is_near_float32_in_every_row_and_channel(
    weight: torch.Tensor, bias: torch.Tensor, gelu: bool, after_gelu: bool
) -> None:
    """Each output is within 2 % of the maximum of its row and channel, however different their sizes are."""
    x = inputs(after_gelu=after_gelu)
    exact = functional.linear(x, weight, bias)
    product = prepare(weight, bias, dtype="int8", gelu=gelu, after_gelu=after_gelu)(x)
    reach = x.norm(dim=1, keepdim=True) * weight.norm(dim=1)
    assert ((product - (functional.gelu(exact) if gelu else exact)).abs() <= 0.02 * reach + 1e-4).all()


@pytest.mark.usefixtures("library")
def test_int8_rows_do_not_depend_on_each_other(weight: torch.Tensor, bias: torch.Tensor) -> None:
    """A row has exactly the same result alone and among rows a thousand times as large."""
    linear = prepare(weight, bias, dtype="int8")
    x = inputs()
    together = linear(x)
    for row in range(ROWS):
        assert torch.equal(linear(x[row : row + 1])[0], together[row])


@pytest.mark.usefixtures("library")
def test_int8_of_nothing_is_the_bias(weight: torch.Tensor, bias: torch.Tensor) -> None:
    """The product of a row of zeros is the bias, without a division by zero."""
    assert torch.equal(prepare(weight, bias, dtype="int8")(torch.zeros(2, IN)), bias.expand(2, OUT))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_int8_hides_no_damage(weight: torch.Tensor, bias: torch.Tensor, value: float) -> None:
    """A value that is not finite is not rounded to a finite one and affects no other row."""
    linear = prepare(weight, bias, dtype="int8")
    x = inputs()
    sound = linear(x)
    x[5, 7] = value
    product = linear(x)
    assert not torch.isfinite(product[5]).any()
    others = [row for row in range(ROWS) if row != 5]
    assert torch.equal(product[others], sound[others])


def test_int8_without_vnni_does_not_saturate(
    weight: torch.Tensor, bias: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processors that add product pairs in 16 bits use fewer bits for the weights, with nearly the same accuracy."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    x = inputs()
    product = prepare(weight, bias, dtype="int8")(x)
    reach = x.norm(dim=1, keepdim=True) * weight.norm(dim=1)
    assert ((product - functional.linear(x, weight, bias)).abs() <= 0.02 * reach).all()


@given(st.integers(1, 40), st.floats(1, 1e6), st.integers(0, 2**32))
def test_no_pair_of_int8_products_overflows_16_bits(width: int, outlier: float, seed: int) -> None:
    """The largest activations times any two neighbouring weights fit, whatever the weights, and no weight is cut."""
    torch.manual_seed(seed)
    weight = torch.randn(5, width).sign() * torch.rand(5, width)
    weight[2, seed % width] *= outlier
    narrow, scale = int8._quantised(weight, paired=True)
    pairs = functional.pad(narrow, (0, width % 2)).int().view(5, -1, 2)
    assert pairs.clamp(min=0).sum(2).max() * int8._PAIRED_HIGHEST <= 2**15 - 1
    assert pairs.clamp(max=0).sum(2).min() * int8._PAIRED_HIGHEST >= -(2**15)
    assert ((narrow * scale[:, None] - weight).abs() <= 0.501 * scale[:, None]).all()


@needs_fbgemm
@pytest.mark.slow
@pytest.mark.parametrize("library", ["onednn", "fbgemm"])
def test_int8_on_avx2_alone_is_exact_where_rounding_is(library: str) -> None:
    """Held to AVX2, which adds products in pairs in 16 bits, the largest pairs of integers give the exact product."""
    held = {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
    subprocess.run([sys.executable, "-c", LARGEST_PAIRS, library], env=os.environ | held, check=True)


LARGEST_PAIRS = """
import sys
import torch
from embedder.model.int8 import int8_product

torch.cpu._is_vnni_supported = lambda: False
torch.manual_seed(0)
first = torch.randint(1, 128, (40, 48))
weight = torch.stack([first, 128 - first], 2).view(40, 96).float() * torch.tensor([1.0, -1.0]).repeat(20)[:, None]
x = torch.where(torch.rand(23, 96) < 0.8, 127.0, -127.0)
product = int8_product(weight, torch.zeros(40), after_gelu=False, library=sys.argv[1])(x)
assert torch.equal(product, x @ weight.T), (product - x @ weight.T).abs().max()
"""


@needs_fbgemm
def test_int8_by_fbgemm_does_not_saturate() -> None:
    """Without VNNI pairs of products are added in 16 bits, which the largest weights and inputs do not overflow."""
    linear_layer = int8.int8_product(torch.full((OUT, IN), 3.0), torch.zeros(OUT), after_gelu=False, library="fbgemm")
    assert torch.allclose(linear_layer(torch.full((2, IN), 5.0)), torch.full((2, OUT), 15.0 * IN))


@needs_fbgemm
def test_packing_int8_leaves_the_quantised_engine_of_torch_as_it_was(weight: torch.Tensor, bias: torch.Tensor) -> None:
    """The process-wide engine of torch's quantised layers, which other code may rely on, is the same afterwards."""
    before = torch.backends.quantized.engine
    int8.int8_product(weight, bias, after_gelu=False, library="fbgemm")
    assert torch.backends.quantized.engine == before


@needs_fbgemm
def test_the_library_of_int8_is_the_faster_by_a_third(monkeypatch: pytest.MonkeyPatch) -> None:
    """FBGEMM, which rounds more, is taken where it is decisively faster, and not for a small difference."""
    for seconds, fastest in ((1.5, "fbgemm"), (1.2, "onednn"), (0.5, "onednn")):
        monkeypatch.setattr(int8, "quickest_runs", lambda *_, took=seconds, **__: {"onednn": took, "fbgemm": 1.0})
        assert int8.fastest_library.__wrapped__() == fastest


@needs_fbgemm
@pytest.mark.usefixtures("float16_weights")
@pytest.mark.parametrize("gelu", [False, True])
def test_float16_weights_are_the_only_rounding(weight: torch.Tensor, bias: torch.Tensor, gelu: bool) -> None:
    """Where the processor does not multiply float16, the result is that of float32 with rounded weights."""
    exact = functional.linear(inputs(), weight.half().float(), bias)
    product = prepare(weight, bias, dtype="float16", gelu=gelu)(inputs())
    assert product.dtype == torch.float32
    assert torch.allclose(product, functional.gelu(exact) if gelu else exact, rtol=1e-5, atol=1e-4)


@needs_fbgemm
@pytest.mark.usefixtures("float16_weights")
def test_rows_beside_float16_weights_do_not_depend_on_each_other(weight: torch.Tensor, bias: torch.Tensor) -> None:
    """A row has exactly the same result alone and among others, of which one is not finite."""
    layer = prepare(weight, bias, dtype="float16")
    x = inputs()
    x[5, 7] = float("nan")
    together = layer(x)
    assert not torch.isfinite(together[5]).any()
    for row in set(range(ROWS)) - {5}:
        assert torch.equal(layer(x[row : row + 1])[0], together[row])


@needs_fbgemm
@pytest.mark.usefixtures("float16_weights")
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e6])
def test_a_weight_beyond_float16_is_refused(weight: torch.Tensor, bias: torch.Tensor, value: float) -> None:
    """Damage is named when the model is loaded; the library would replace it by a finite number."""
    weight[3, 4] = value
    with pytest.raises(ConfigurationError, match=r"not finite or larger than 65504, .* use float32"):
        prepare(weight, bias, dtype="float16")


def test_float16_weights_are_for_processors_that_do_not_multiply_float16() -> None:
    """A GPU, and any other type, has states of its own type."""
    assert not keeps_float16_weights("float16", "cuda")
    assert state_type("float16", "cuda") == torch.float16
    assert state_type("bfloat16", "cpu") == torch.bfloat16
    assert state_type("float16", "cpu") == (torch.float32 if keeps_float16_weights("float16", "cpu") else torch.float16)


def test_int8_where_there_is_no_kernel_names_the_fix(
    weight: torch.Tensor, bias: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`DTYPE=int8` on a machine without the kernel refuses to start instead of being slow."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match=r"DTYPE=int8 needs .* use auto or float32"):
        prepare(weight, bias, dtype="int8")


def test_gelu_by_tanh_is_within_the_rounding_of_float16_where_it_is_positive() -> None:
    """The form that cublasLt computes is within 5e-4 of the exact one, and above 0 within half a unit of float16."""
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    exact = functional.gelu(x)
    error = (functional.gelu(x, approximate="tanh") - exact).abs()
    assert error.max() < 5e-4
    positive = (exact > 0) & (exact >= torch.finfo(torch.float16).smallest_normal)
    unit = torch.exp2(torch.floor(torch.log2(exact[positive])) - 10)
    assert (error[positive] / unit).max() < 0.5


def test_gelu_by_tanh_is_for_16_bits_on_a_gpu() -> None:
    """A CPU and float32 use the exact GELU; in 16 bits on a GPU queries and passages use the same form."""
    assert has_tanh_gelu("cuda", torch.float16)
    assert has_tanh_gelu("cuda", torch.bfloat16)
    assert not has_tanh_gelu("cuda", torch.float32)
    assert not has_tanh_gelu("cpu", torch.float16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_product_with_gelu_is_the_same_with_many_rows(dtype: torch.dtype) -> None:
    """On a GPU a row has nearly the result of the exact GELU, in a small batch and in a large one."""
    torch.manual_seed(0)
    weight, bias = (
        torch.randn(256, 128, device="cuda:0", dtype=dtype) / 8,
        torch.zeros(256, device="cuda:0", dtype=dtype),
    )
    x = torch.randn(4096, 128, device="cuda:0", dtype=dtype)
    linear = prepare(weight, bias, dtype=str(dtype).removeprefix("torch."), gelu=True)
    assert torch.allclose(linear(x)[:64], linear(x[:64]), atol=1e-3, rtol=2 * torch.finfo(dtype).eps)
    exact = functional.gelu(functional.linear(x.float(), weight.float(), bias.float()))
    assert torch.allclose(linear(x).float(), exact, atol=2e-3, rtol=4 * torch.finfo(dtype).eps)
