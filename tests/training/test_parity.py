"""The parity check without a server: what it finds, what it says, and that scrambling undoes itself."""

import math

import pytest
import torch

from tests.training.tiny_models import tiny_model
from training.parity import (
    Comparison,
    ParityConfig,
    ParityError,
    ParityReport,
    compare,
    probe_prompts,
    scrambled_weights,
)
from training.vllm_admin import Sampled


def comparison(diff: float, untempered: float | None = None) -> Comparison:
    return Comparison(10, diff, diff / 2, 1, 3, 42, -2.0, -2.0 - diff, untempered)


def test_the_largest_difference_is_located():
    samples = [Sampled([7, 8], [-1.0, -2.0]), Sampled([9, 10, 11], [-1.0, -0.5, -4.0])]
    found = compare(samples, [[-1.0, -2.1], [-1.0, -0.5, -3.0]])
    assert (found.prompt, found.position, found.token_id) == (1, 2, 11)
    assert found.max_abs_diff == pytest.approx(1.0)
    assert found.mean_abs_diff == pytest.approx(1.1 / 5)
    assert (found.server_logprob, found.trainer_logprob, found.tokens) == (-4.0, -3.0, 5)


def test_nan_is_the_largest_difference():
    found = compare([Sampled([7, 8], [-1.0, -2.0])], [[-5.0, math.nan]])
    assert found.position == 1
    assert not found.within(1e9)
    with pytest.raises(ParityError):
        ParityReport(comparison(0.0), found).judge(1e9)


class TestJudgement:
    def test_within_tolerance(self):
        report = ParityReport(comparison(1e-6), comparison(2e-6))
        report.judge(1e-3)
        assert report.max_abs_diff == 2e-6

    def test_the_message_says_where_and_how_much(self):
        with pytest.raises(ParityError) as error:
            ParityReport(comparison(0.3), comparison(0.4)).judge(1e-3)
        for part in ("0.3 nats", "sampled token 3 of prompt 1, id 42", "tolerance 0.001", "lm_head.weight"):
            assert part in str(error.value)

    def test_only_scrambled_weights_differ(self):
        with pytest.raises(ParityError, match=r"scrambled weights.*lm_head\.weight"):
            ParityReport(comparison(1e-6), comparison(1.1)).judge(1e-3)

    def test_only_the_real_weights_differ(self):
        with pytest.raises(ParityError, match="last weight sync did not take"):
            ParityReport(comparison(1.1), comparison(1e-6)).judge(1e-3)

    def test_the_temperature_explains_it(self):
        with pytest.raises(ParityError, match="--logprobs-mode processed_logprobs"):
            ParityReport(comparison(0.29, untempered=1e-6), None).judge(1e-3)


def test_tolerance_follows_the_dtype():
    assert ParityConfig().tolerance_for(torch.float32) < ParityConfig().tolerance_for(torch.bfloat16)
    assert ParityConfig(tolerance=0.2).tolerance_for(torch.float32) == 0.2


def test_prompts_are_the_same_in_every_run_and_share_a_prefix():
    prompts = probe_prompts(ParityConfig(prompts=3, prompt_tokens=8), 100)
    assert prompts == probe_prompts(ParityConfig(prompts=3, prompt_tokens=8), 100)
    assert len({tuple(p[:4]) for p in prompts}) == 1
    assert len({tuple(p) for p in prompts}) == 3


class TestScrambling:
    @pytest.mark.parametrize("tied", [True, False])
    def test_every_trained_tensor_changes_and_comes_back_exactly(self, tied):
        model = tiny_model(tied=tied)
        model.model.norm.weight.requires_grad_(False)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        with scrambled_weights(model):
            for name, p in model.named_parameters():
                assert torch.equal(p, before[name]) == (name == "model.norm.weight"), name
        for name, p in model.named_parameters():
            assert torch.equal(p, before[name]), name

    def test_it_comes_back_when_something_fails(self):
        model = tiny_model()
        before = model.lm_head.weight.detach().clone()
        with pytest.raises(RuntimeError, match="boom"), scrambled_weights(model):
            raise RuntimeError("boom")
        assert torch.equal(model.lm_head.weight, before)

    @pytest.mark.parametrize("name", [name for name, _ in tiny_model(tied=False).named_parameters()])
    def test_a_tensor_that_did_not_arrive_shows(self, name):
        """A server that kept one tensor as it was differs by far more than the tolerance, whichever it is."""
        ids = torch.arange(40)[None]
        server, trainer = tiny_model(), tiny_model()
        with torch.no_grad(), scrambled_weights(server), scrambled_weights(trainer):
            server.get_parameter(name).copy_(server.get_parameter(name).roll(-1, 0))
            differences = (server(ids).logits.log_softmax(-1) - trainer(ids).logits.log_softmax(-1)).abs()
        assert differences.max() > 20 * ParityConfig().tolerance_for(torch.float32)
