"""Inputs of every kind of strides and size, and what a call must leave alone."""

from concurrent.futures import ThreadPoolExecutor

import oracle
import problems
import pytest
import torch
import torch.nn.functional as F

from ccn_kernels.functional import compact_conv2d, compact_linear


def with_input(x, **settings):
    """A problem of ``problems.make`` with another input in its place; ``x`` keeps its strides."""
    problem = problems.make(2, (x.shape[1], 6), tuple(x.shape[2:]), batch=x.shape[0], **settings)
    problem.input = x
    problems.settle_gradient(problem)
    return problem


@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize("name", problems.STRIDED)
def test_strided_inputs(backend, name, relu):
    problem = with_input(problems.STRIDED[name](), padding=1, groups=2, relu=relu)
    results = problem.run(backend)
    problems.assert_accurate(problem, results)
    problems.assert_laid_out_alike(results["output"], F.conv2d(problem.input, problem.weight, padding=1, groups=2))


@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize("rank", [0, 1])
def test_strided_inputs_of_fewer_axes(backend, rank, relu):
    shape = {0: (5, 9), 1: (3, 8, 9)}[rank]
    for x in (torch.randn(shape).mT.contiguous().mT, torch.randn(*shape[:-1], 18)[..., ::2]):
        problem = problems.make(rank, (x.shape[1], 4), shape[2:], batch=shape[0], relu=relu)
        problem.input = x
        problems.settle_gradient(problem)
        results = problem.run(backend)
        problems.assert_accurate(problem, results)
        problems.assert_laid_out_alike(results["output"], problems.CONVS[rank](x, problem.weight))


@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize(
    "strided",
    [
        lambda: torch.randn(6, 2, 6, 6)[:, :, ::2, ::2],
        lambda: torch.randn(6, 4, 3, 3)[:, ::2],
        lambda: torch.randn(3, 3, 2, 6).permute(3, 2, 1, 0),
        lambda: torch.randn(1, 2, 3, 3).expand(6, 2, 3, 3),
        lambda: torch.randn(6, 2, 1, 1).expand(6, 2, 3, 3),
    ],
    ids=["every other tap", "every other channel", "permuted", "one filter expanded", "one tap expanded"],
)
def test_strided_weights(backend, strided, relu):
    problem = problems.make(2, padding=1, groups=2, relu=relu)
    problem.weight = strided()
    problems.settle_gradient(problem)
    problems.assert_accurate(problem, problem.run(backend))


def test_a_transposed_linear_weight_and_a_strided_bias(backend):
    problem = problems.make(0, (6, 5))
    problem.weight, problem.bias = torch.randn(6, 5).t(), torch.randn(10)[::2]
    problems.assert_accurate(problem, problem.run(backend))
    problem.weight, problem.bias = torch.randn(5, 12)[:, ::2], torch.randn(1).expand(5)
    problems.assert_accurate(problem, problem.run(backend))


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (9, 3)])
def test_a_weight_over_sequences_may_have_its_channels_innermost(backend, kernel, stride):
    """ATen takes it for channels_last, and gives its convolution in it."""
    problem = problems.make(1, (5, 15), 40, kernel, stride=stride)
    problem.weight = torch.randn(15, kernel, 5).mT
    problems.settle_gradient(problem)
    problems.assert_accurate(problem, problem.run(backend))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_an_expanded_weight_stays_what_it_is_when_it_is_cast(backend, dtype):
    """A copy of it in a wider type would be channels_last."""
    weight = torch.randn(1, 3, 3, 4).to(dtype).permute(0, 3, 1, 2).expand(6, 4, 3, 3)
    x = torch.randn(2, 4, 6, 5).to(dtype)
    problems.assert_laid_out_alike(compact_conv2d(x, weight, backend=backend), F.conv2d(x, weight))


@pytest.mark.parametrize("formats", [(False, False), (True, True)], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize("strided", ["expanded", "contiguous", "channels_last", "permuted"])
def test_strided_incoming_gradients(backend, strided, relu, formats):
    problem = problems.make(2, padding=1, relu=relu, formats=formats, bias=False)
    shape = problem.grad.shape
    kept = problem.grad != 0
    if strided == "expanded":  # what sum().backward() sends
        problem.grad, kept = torch.ones(()).expand(shape), True
    elif strided == "permuted":
        problem.grad = problem.grad.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    else:
        problem.grad = problems.in_format(problem.grad.contiguous(), strided == "channels_last")
    assert kept is True or torch.equal(problem.grad != 0, kept)
    problems.assert_accurate(problem, problem.run(backend))


@pytest.mark.parametrize("formats", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    "settings",
    [
        {"channels": (4, 6)},
        {"channels": (4, 1)},
        {"channels": (1, 6)},
        {"channels": (4, 6), "kernel": 8},  # the output has one pixel
        {"channels": (4, 6), "batch": 1},
        {"channels": (4, 6), "size": (8, 1), "kernel": (3, 1)},
        {"channels": (4, 6), "kernel": 1},
        {"channels": (4, 6), "groups": 2, "stride": 2},
        {"channels": (4, 6), "kernel": 2, "padding": "same"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_output_has_the_strides_of_conv2d(backend, settings, formats, dtype):
    problem = problems.make(2, **settings, formats=formats, dtype=dtype)
    like = F.conv2d(problem.input, problem.weight, problem.bias, **problem.geometry)
    problems.assert_laid_out_alike(problem.run(backend)["output"], like)


@pytest.mark.parametrize("formats", [(False, False), (True, False), (False, True)])
def test_output_has_the_strides_of_conv3d(backend, formats):
    problem = problems.make(3, size=4, padding=1, formats=formats)
    problems.assert_laid_out_alike(problem.run(backend)["output"], F.conv3d(problem.input, problem.weight, padding=1))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_no_images_at_all(backend, rank, dtype, relu):
    problem = problems.make(rank, size=4, batch=0, dtype=dtype, relu=relu)
    results = problem.run(backend)
    conv = problems.CONVS[rank]
    problems.assert_laid_out_alike(results["output"], conv(problem.input, problem.weight, problem.bias))
    assert results["output"].dtype == dtype
    assert results["input"].shape == problem.input.shape
    for name in ("weight", "bias", "alpha"):
        assert torch.equal(results[name], torch.zeros_like(getattr(problem, name))), name


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_an_unbatched_input_is_a_batch_of_one(backend, rank, last):
    problem = problems.make(rank, size=5, padding=1, batch=1)
    batched = problem.run(backend)
    x = problem.input[0]
    problem.input = x.movedim(0, -1).contiguous().movedim(-1, 0) if last else x
    problem.grad = problem.grad[0]
    single = problem.run(backend)
    problems.assert_laid_out_alike(single["output"], problems.CONVS[rank](problem.input, problem.weight, padding=1))
    for name, value in single.items():
        expected = batched[name][0] if name in ("output", "input") else batched[name]
        torch.testing.assert_close(value, expected, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batched", [False, True])
def test_one_permuted_image_under_groups(backend, batched, dtype):
    """Of such an image F.conv2d's own gradient of the weight is wrong in fp64."""
    problem = problems.make(2, (4, 2), (2, 1), padding=1, groups=2, batch=1, dtype=dtype, formats=(False, True))
    image = torch.randn(2, 1, 4).to(dtype).permute(2, 0, 1)
    problem.input = image.unsqueeze(0)
    expected = problem.oracle()
    if not batched:
        problem.input, problem.grad = image, problem.grad[0]
    for name, value in problem.run(backend).items():
        want = expected[name].reshape(value.shape).to(dtype)
        torch.testing.assert_close(value, want, msg=name)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (2, 0, 3), (1, 2, 1, 2)], ids=str)
def test_a_linear_layer_takes_any_leading_axes(backend, leading):
    x, w, b = torch.randn(*leading, 5), torch.randn(3, 5), torch.randn(3)
    y = compact_linear(x, w, b, 2.0, backend=backend)
    problems.assert_laid_out_alike(y, F.linear(x, w, b))
    expected = oracle.compact_conv(x.reshape(-1, 5), w, b, 2.0).reshape(*leading, 3)
    torch.testing.assert_close(y, expected.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("formats", [(False, False), (True, True)], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize("settings", [{}, {"groups": 2}, {"stride": 2}, {"dilation": 2}, {"kernel": 1}], ids=str)
def test_a_bad_value_reaches_only_the_outputs_that_see_it(backend, settings, relu, formats, value):
    problem = problems.make(2, (4, 6), 9, **{"kernel": 3, "padding": 1, **settings}, formats=formats, relu=relu)
    clean = problem.run(backend)["output"]
    problem.input[2, 3, 6, 5] = value
    seen = oracle.unfold(problem.input, problem.weight.shape[2:], **problem.geometry)[0].isfinite().all(2).logical_not()
    seen = seen.repeat_interleave(6 // seen.shape[1], 1).reshape(clean.shape)
    assert 0 < seen.sum() < seen.numel() / 4
    dirty = problem.run(backend)["output"]
    assert dirty[seen].isnan().all()  # inf / inf is NaN
    torch.testing.assert_close(dirty[~seen], clean[~seen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("formats", [(False, False), (True, True)], ids=["contiguous", "channels_last"])
def test_the_same_input_gives_the_same_bits(backend, formats, dtype):
    problem = problems.make(2, (8, 16), 40, padding=1, batch=9, formats=formats, dtype=dtype)
    first, second = problem.run(backend), problem.run(backend)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)  # the reference's sums are ATen's to order
@pytest.mark.parametrize("formats", [(False, False), (True, True)], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_sums_of_our_own_do_not_depend_on_the_number_of_threads(backend, formats, relu):
    """The bias's gradient, and alpha's where the weight needs none; the others go through ATen's convolution."""
    problem = problems.make(2, (3, 5), (80, 70), padding=1, batch=5, formats=formats, relu=relu)
    found = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        alpha, bias = (t.detach().requires_grad_() for t in (problem.alpha, problem.bias))
        activation = "relu" if relu else None
        y = compact_conv2d(
            problem.input, problem.weight, bias, alpha, padding=1, activation=activation, backend=backend
        )
        found[threads] = torch.autograd.grad(y, [bias, alpha], problem.grad)
    for one, two in zip(found[1], found[2], strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_operands_and_incoming_gradient_are_left_as_they_were(backend, rank, dtype, relu):
    problem = problems.make(rank, size=5, dtype=dtype, relu=relu)
    tensors = (*problem.operands, problem.grad)
    before = [(t.clone(), t._version) for t in tensors]
    problem.run(backend)
    for tensor, (copy, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)
        assert tensor._version == version


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_an_inplace_relu_may_follow(backend, rank, bias):
    problem = problems.make(rank, size=5, dtype=torch.float64, bias=bias, relu=True)

    def call(x, w, b, alpha):
        return problems.PUBLIC[rank](x, w, b, alpha, backend=backend).relu_()

    problems.assert_accurate(problem, problems.differentiate(call, problem.operands, problem.grad))


@pytest.mark.parametrize("alpha", [-1.3, 0.0, 30.0])
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_any_alpha(backend, alpha, relu):
    problem = problems.make(2, padding=1, alpha=alpha, relu=relu)
    problems.assert_accurate(problem, problem.run(backend))


@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64], ids=str)
def test_alpha_may_be_a_number_or_a_tensor_of_another_dtype(backend, kind):
    x, w = torch.randn(2, 3, 5, 5).bfloat16(), torch.randn(4, 3, 3, 3).bfloat16()
    alpha = torch.tensor(1.5, dtype=kind, requires_grad=True)
    y = compact_conv2d(x, w, None, alpha, backend=backend)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, compact_conv2d(x, w, None, 1.5, backend=backend))
    y.sum().backward()
    assert alpha.grad.dtype == kind
    torch.testing.assert_close(alpha.grad.double() * 1.5, y.double().sum(), rtol=2e-2, atol=0)


def test_results_do_not_depend_on_the_grad_mode(backend):
    problem = problems.make(2, padding=1)
    expected = problem.run(backend)["output"]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = compact_conv2d(*problem.operands, padding=1, backend=backend)
        assert torch.equal(y, expected)
        assert not y.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("formats", [(False, False), (True, True)], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 2, "relu": True},
        {"stride": (3, 1), "groups": 2},
        {"stride": 9},
        {"stride": 2, "size": (1, 7)},
        {"rank": 1, "stride": 2},
        {"rank": 3, "stride": (1, 2, 3), "size": 5},
        {"stride": 2, "batch": 0},
    ],
    ids=str,
)
def test_strided_pointwise_kernels(backend, settings, formats, dtype):
    """They see every stride-th pixel alone; the others' gradient is 0."""
    if settings.get("rank") == 1:
        formats = (False, False)
    problem = problems.make(**{"channels": (16, 8), "size": 9, "kernel": 1, **settings}, formats=formats, dtype=dtype)
    results = problem.run(backend)
    problems.assert_accurate(problem, results)
    if dtype == torch.float32:
        expected = problems.CONVS[problem.rank](problem.input, problem.weight, **problem.geometry)
        problems.assert_laid_out_alike(results["output"], expected)


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 6])
def test_strided_pointwise_kernels_over_few_channels_in_channels_last(backend, channels):
    """oneDNN writes past its workspace there (uxlfoundation/oneDNN#6035), so F.conv2d cannot be the yardstick."""
    problem = problems.make(2, (channels, 5), 8, 1, batch=8, stride=2, formats=(True, True))
    expected = problem.oracle()
    for name, value in problem.run(backend).items():
        limit = 1e-3 if name == "alpha" else 1e-5  # one number, of terms that cancel
        assert problems.relative_error(value, expected[name]) < limit, name


def test_calls_from_several_threads_do_not_disturb_one_another(backend):
    """Same problems, one after the other and at once: no state is shared between calls."""
    many = [problems.make(2, (3, 4 + i), 20, padding=1, batch=4, relu=i % 2 == 0) for i in range(8)]
    alone = [problem.run(backend) for problem in many]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda problem: problem.run(backend), many))
    for one, two in zip(alone, together, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, msg=name)
