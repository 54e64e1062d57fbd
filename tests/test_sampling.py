"""Draws follow the distribution, respect top-k and depend on their own noise alone."""

import pytest
import torch

from personaplex.errors import InputError
from personaplex.messages import SamplingOptions
from personaplex.nn.sampling import draw


def one(logits, uniform, temperature=1.0, top_k=250, greedy=False):
    rows = len(uniform)
    return draw(
        logits.expand(rows, -1), torch.tensor(uniform), torch.full((rows,), temperature),
        torch.full((rows,), top_k), torch.full((rows,), greedy),
    )  # fmt: skip


def test_frequencies_match_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    uniform = ((torch.arange(4000) + 0.5) / 4000).tolist()
    counts = torch.bincount(one(logits, uniform, temperature=0.7), minlength=4) / 4000
    torch.testing.assert_close(counts, torch.softmax(logits[0] / 0.7, -1), atol=1e-3, rtol=0)


def test_top_k_never_leaves_the_k_likeliest_even_at_the_edges():
    logits = torch.arange(10.0)[None]
    drawn = one(logits, [0.0, 0.5, 0.999999, 1.0 - 2**-24], temperature=10.0, top_k=3)
    assert set(drawn.tolist()) <= {7, 8, 9}
    assert one(logits, [0.999999], top_k=1).tolist() == [9]


def test_greedy_ignores_noise_and_prefers_the_first_of_equals():
    assert one(torch.tensor([[1.0, 3.0, 3.0]]), [0.1, 0.9], greedy=True).tolist() == [1, 1]


def test_rows_have_options_of_their_own():
    logits = torch.tensor([[0.0, 5.0, 0.0], [0.0, 5.0, 0.0]])
    drawn = draw(
        logits, torch.tensor([0.999, 0.999]), torch.tensor([100.0, 0.01]), torch.tensor([3, 3]),
        torch.tensor([False, False]),
    )  # fmt: skip
    assert drawn[0] != 1 and drawn[1] == 1


@pytest.mark.parametrize(
    "wrong", [dict(temperature_audio=0.0), dict(temperature_text=float("nan")), dict(top_k_audio=0),
              dict(top_k_text=251), dict(seed=-1)],
)  # fmt: skip
def test_impossible_options_say_what_is_allowed(wrong):
    with pytest.raises(InputError, match="allowed"):
        SamplingOptions(**wrong)
