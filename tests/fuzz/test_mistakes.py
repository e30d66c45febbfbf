"""Random bad calls raise what PyTorch's own functions raise for them, and name what is wrong."""

import re

import cases
import mistakes
import problems
import pytest
import torch
from hypothesis import given, settings

CLASSES = (TypeError, ValueError, RuntimeError)
pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's, of what is odd but no mistake


def outcome(function, **arguments):
    """The shape of the result, or the error."""
    try:
        return tuple(function(**arguments).shape)
    except Exception as error:
        return error


def kind_of(error):
    return next((kind for kind in CLASSES if isinstance(error, kind)), RuntimeError)


def expected(theirs, call):
    """The class of our error; None where the call is good after all."""
    if isinstance(theirs, Exception):
        return kind_of(theirs)
    return RuntimeError if call.refused else None


@settings(max_examples=500)
@given(call=mistakes.bad())
def test_a_bad_call_raises_what_pytorch_raises(call):
    theirs, ours = (outcome(functions[call.rank], **call.made()) for functions in (problems.CONVS, problems.PUBLIC))
    told = f"PyTorch: {theirs!r}\nours: {ours!r}"
    if isinstance(ours, tuple):
        assert ours == theirs, told
    else:
        assert type(ours) is expected(theirs, call), told
        assert re.search("|".join(call.wrong), str(ours)), f"{told}\nnames none of {call.wrong}"


@settings(max_examples=500)
@given(layer=mistakes.layer())
def test_a_bad_layer_raises_what_pytorch_raises(layer):
    rank, arguments, error = layer

    def built(kinds):
        return outcome(lambda **arguments: kinds[rank](**arguments)(torch.zeros(2, 4, *[6] * rank)), **arguments)

    ours = built(cases.LAYERS)
    if error is not None:
        assert type(ours) is error, f"{ours!r}"
        assert list(arguments)[-1] in str(ours)
        return
    theirs = built(cases.PLAIN)
    told = f"PyTorch: {theirs!r}\nours: {ours!r}"
    if isinstance(theirs, Exception):
        assert isinstance(ours, Exception), told
        assert kind_of(ours) is kind_of(theirs), told
    else:
        assert ours == theirs, told
