"""Tree attention against independent computations: a plain forward of each row alone, and attention by
loops."""

import math
from dataclasses import replace

import pytest
import torch

from tests.training.tiny_models import tiny_model
from training import attention
from training.attention import (
    Segment,
    TreeAttention,
    TreeAttentionError,
    build_segments,
    choose_attention,
    compute_dtype,
    install_tree_attention,
)
from training.packing import pack_rows, score_rows, tree_inputs
from training.trl_seams import TREE_ATTENTION, add_fused_lm_head

SHAPES = {
    "grouped heads": {},
    "all heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "window of 5": {"window": 5},
    "window of 1": {"window": 1},
    "window longer than any row": {"window": 200},
}


def rows_of(*rows: tuple[list[int], int]) -> list[tuple[list[int], list[int]]]:
    """(ids, prompt length) -> (ids, mask of the tokens after the prompt)."""
    return [(ids, [0] * start + [1] * (len(ids) - start)) for ids, start in rows]


def random_ids(n: int, seed: int) -> list[int]:
    return torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


SYSTEM, USER_A, USER_B = random_ids(11, 1), random_ids(7, 2), random_ids(5, 3)
TREES = {
    "one row": rows_of((random_ids(20, 4), 8)),
    "nothing shared": rows_of((random_ids(9, 5), 3), (random_ids(13, 6), 5)),
    "a group with one prompt": rows_of(*((SYSTEM + random_ids(6 + i, 10 + i), 11) for i in range(4))),
    "two groups under one system prompt": rows_of(
        *((SYSTEM + USER_A + random_ids(4 + i, 20 + i), 18) for i in range(3)),
        *((SYSTEM + USER_B + random_ids(8, 30 + i), 16) for i in range(3)),
    ),
    "forks at every depth": rows_of(
        (SYSTEM, 4),
        (SYSTEM + USER_A, 4),
        (SYSTEM + USER_A + random_ids(9, 40), 18),
        (SYSTEM + USER_A[:3] + random_ids(6, 41), 14),
        (SYSTEM[:5] + random_ids(6, 42), 5),
        (SYSTEM + USER_A + random_ids(2, 43), 12),
    ),
    "the same row twice": rows_of((SYSTEM + USER_A, 11), (SYSTEM + USER_A, 11)),
    "a row that ends inside another": rows_of((SYSTEM + USER_A, 11), (SYSTEM + USER_A[:4], 11)),
    "trained tokens in the middle only": [(SYSTEM + USER_A, [0] * 6 + [1] * 4 + [0] * 8)],
}


@pytest.fixture(autouse=True)
def portable_attention():
    install_tree_attention("segments")


def plain_scores(model, rows, temperature=1.0):
    """Each row in a forward of its own, with eager attention and the model's own mask."""
    model.set_attn_implementation("eager")
    scores = []
    for ids, mask in rows:
        logits = model(torch.tensor([ids])).logits[0] / temperature
        logp = logits.log_softmax(-1)
        at = [p for p in range(1, len(ids)) if mask[p]]
        scores.append(torch.stack([logp[p - 1, ids[p]] for p in at]))
    return scores


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_rows_have_the_log_probabilities_and_gradients_of_plain_forwards(shape, tree):
    rows = TREES[tree]
    model = tiny_model(**SHAPES[shape])
    weights = [torch.randn(sum(mask[1:])) for _, mask in rows]

    def gradients(scores):
        model.zero_grad()
        sum((w * s).sum() for w, s in zip(weights, scores, strict=True)).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    plain = plain_scores(model, rows)
    plain_gradients = gradients(plain)
    model.set_attn_implementation(TREE_ATTENTION)
    packed = score_rows(model, rows, device="cpu", fused=False)
    packed_gradients = gradients(packed)
    for a, b in zip(packed, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    for name, wanted in plain_gradients.items():
        scale = max(1.0, wanted.abs().max().item())
        assert (packed_gradients[name] - wanted).abs().max() < 2e-5 * scale, name


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_fused_head_scores_as_plain_forwards_do(temperature):
    rows = TREES["forks at every depth"]
    model = tiny_model(window=5)
    plain = plain_scores(model, rows, temperature)
    model.set_attn_implementation(TREE_ATTENTION)
    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
    for a, b in zip(score_rows(model, rows, device="cpu"), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_shared_tokens_are_forwarded_once():
    group = TREES["a group with one prompt"]
    packed = pack_rows(group)
    raw = sum(len(ids) for ids, _ in group)
    # Four rows share eleven tokens, of which the last is kept apart per branch.
    assert packed["input_ids"].numel() == raw - 3 * 10


def test_gradient_checkpointing_changes_nothing():
    rows = TREES["two groups under one system prompt"]
    model = tiny_model(window=5)
    model.set_attn_implementation(TREE_ATTENTION)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model.zero_grad()
        torch.cat(score_rows(model, rows, device="cpu", fused=False)).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_two_rows_in_turn_do_not_reuse_each_others_segments():
    model = tiny_model()
    for tree in ("forks at every depth", "one row", "forks at every depth"):
        plain = plain_scores(model, TREES[tree])
        model.set_attn_implementation(TREE_ATTENTION)
        for a, b in zip(score_rows(model, TREES[tree], device="cpu", fused=False), plain, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_attention_against_loops(window, softcap):
    """Scores, mask, cap and softmax spelled out token by token, in float64."""
    rows = TREES["forks at every depth"]
    packed = pack_rows(rows)
    n = packed["input_ids"].numel()
    torch.manual_seed(3)
    q, k, v = torch.randn(1, 4, n, 8), torch.randn(1, 2, n, 8), torch.randn(1, 2, n, 6)
    inputs = tree_inputs(packed, "cpu")
    del inputs["input_ids"], inputs["position_ids"]
    out, _ = TreeAttention()(
        torch.nn.Identity(), q, k, v, None, scaling=0.3, sliding_window=window, softcap=softcap, **inputs
    )
    assert out.shape == (1, n, 4, 6)
    cu_q, cu_k = packed["tree_cu_seqlens_q"].tolist(), packed["tree_cu_seqlens_k"].tolist()
    for s in range(len(cu_q) - 1):
        path = packed["tree_kv_index"][cu_k[s] : cu_k[s + 1]].tolist()
        for i, position in enumerate(range(cu_q[s], cu_q[s + 1])):
            at = len(path) - (cu_q[s + 1] - cu_q[s]) + i
            assert path[at] == position
            seen = path[max(0, at - window + 1) if window else 0 : at + 1]
            for head in range(4):
                scores = [
                    0.3 * float(q[0, head, position].double() @ k[0, head // 2, j].double()) for j in seen
                ]
                if softcap:
                    scores = [softcap * math.tanh(x / softcap) for x in scores]
                exp = [math.exp(x) for x in scores]
                wanted = sum(e * v[0, head // 2, j].double() for e, j in zip(exp, seen, strict=True)) / sum(
                    exp
                )
                torch.testing.assert_close(out[0, position, head].double(), wanted, rtol=0, atol=1e-5)


def test_segments_of_the_example_in_the_docstring():
    # p0 p1 | p2 a3 a4 | p2 b3
    segments = build_segments(
        torch.tensor([0, 2, 5, 7]), torch.tensor([0, 2, 7, 11]), None, torch.device("cpu")
    )
    assert [(s.length, s.path_length, s.skip) for s in segments] == [(2, 2, 0), (3, 5, 0), (2, 4, 0)]
    assert segments[0].mask is None
    assert segments[2].mask.tolist() == [[True, True, True, False], [True, True, True, True]]


def test_a_window_skips_the_part_of_the_path_that_nobody_sees():
    (segment,) = build_segments(torch.tensor([0, 2]), torch.tensor([0, 10]), 3, torch.device("cpu"))
    assert isinstance(segment, Segment)
    assert segment.skip == 6
    assert segment.mask.tolist() == [[True, True, True, False], [False, True, True, True]]


class TestDtypes:
    def test_bfloat16_stays_close_to_float32(self):
        rows = TREES["two groups under one system prompt"]
        model = tiny_model(initializer_range=0.05)
        model.set_attn_implementation(TREE_ATTENTION)
        exact = torch.cat(score_rows(model, rows, device="cpu", fused=False))
        model.to(torch.bfloat16)
        half = torch.cat(score_rows(model, rows, device="cpu", fused=False))
        assert half.dtype == torch.float32
        assert (half - exact).abs().max() < 0.1

    def test_autocast_with_float32_weights(self):
        # Qwen3's query and key norms hand back float32 under autocast, its values stay bfloat16.
        rows = TREES["forks at every depth"]
        model = tiny_model(initializer_range=0.05)
        model.set_attn_implementation(TREE_ATTENTION)
        exact = torch.cat(score_rows(model, rows, device="cpu", fused=False))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = torch.cat(score_rows(model, rows, device="cpu", fused=False))
        half.sum().backward()
        assert 0 < (half - exact).abs().max() < 0.1

    def test_choice(self):
        q, v = torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)
        assert compute_dtype(q, q) == torch.float32
        assert compute_dtype(q, v) == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert compute_dtype(q, q) == torch.bfloat16


class TestRefusals:
    def inputs(self, **changes):
        q = torch.zeros(1, 2, 3, 4)
        tree = {
            "tree_kv_index": torch.arange(3),
            "tree_cu_seqlens_q": torch.tensor([0, 3]),
            "tree_cu_seqlens_k": torch.tensor([0, 3]),
        }
        return (torch.nn.Identity(), q, q, q, None), tree | changes

    def test_dropout(self):
        args, tree = self.inputs(dropout=0.1)
        with pytest.raises(TreeAttentionError, match="attention_dropout"):
            TreeAttention()(*args, **tree)

    def test_attention_sinks(self):
        args, tree = self.inputs(s_aux=torch.zeros(2))
        with pytest.raises(TreeAttentionError, match="sinks"):
            TreeAttention()(*args, **tree)

    def test_a_batch(self):
        args, tree = self.inputs()
        args = (args[0], *(x.expand(2, -1, -1, -1) for x in args[1:4]), None)
        with pytest.raises(TreeAttentionError, match="batch size of 1"):
            TreeAttention()(*args, **tree)

    def test_a_plain_forward_names_the_cure(self):
        model = tiny_model()
        model.set_attn_implementation(TREE_ATTENTION)
        with pytest.raises(TreeAttentionError, match="set_attn_implementation"):
            model(torch.tensor([[1, 2, 3]]))

    @pytest.mark.parametrize("backend", ["fa3", "varlen"])
    def test_a_gpu_kernel_on_the_cpu(self, backend):
        with pytest.raises(TreeAttentionError, match="needs CUDA"):
            choose_attention(backend, torch.device("cpu"), torch.bfloat16)

    def test_auto_on_the_cpu_is_the_portable_one(self):
        assert choose_attention("auto", torch.device("cpu"), torch.float32).fast is None


class TestFusedKernels:
    """Choosing among kernels that cannot run here, with stand-ins for them."""

    @pytest.fixture
    def stand_in(self, monkeypatch):
        """Let CPU tensors through to `varlen`, which is then computed by `compute`."""

        def install(compute):
            monkeypatch.setattr(TreeAttention, "_fits_flash", staticmethod(lambda query, dtype: True))
            monkeypatch.setattr(attention, "varlen_attention", compute)

        return install

    @staticmethod
    def right(query, key, value, kv_index, cu_q, cu_k, max_q, max_k, *, scaling, window):
        segments = build_segments(cu_q, cu_k, window, query.device)
        return attention.segment_attention(query, key, value, kv_index, segments, scaling=scaling)

    def check(self):
        attention.check_kernel("varlen", torch.device("cpu"), torch.bfloat16)

    def test_a_kernel_that_agrees_is_taken(self, stand_in):
        stand_in(self.right)
        self.check()

    def test_a_kernel_aligned_at_the_upper_left_is_not(self, stand_in):
        def upper_left(query, key, value, kv_index, cu_q, cu_k, max_q, max_k, *, scaling, window):
            segments = build_segments(cu_q, cu_k, window, query.device)
            wrong = [
                replace(s, mask=None if s.mask is None else torch.ones_like(s.mask).tril()) for s in segments
            ]
            return attention.segment_attention(query, key, value, kv_index, wrong, scaling=scaling)

        stand_in(upper_left)
        with pytest.raises(TreeAttentionError, match="output differs"):
            self.check()

    def test_a_kernel_that_ignores_the_window_is_not(self, stand_in):
        stand_in(lambda *args, scaling, window: self.right(*args, scaling=scaling, window=None))
        with pytest.raises(TreeAttentionError, match="sliding window 6"):
            self.check()

    def test_a_kernel_with_wrong_gradients_is_not(self, stand_in):
        def no_value_gradient(query, key, value, *args, scaling, window):
            return self.right(query, key, value.detach() + 0 * value, *args, scaling=scaling, window=window)

        stand_in(no_value_gradient)
        with pytest.raises(TreeAttentionError, match="dv differs"):
            self.check()

    def test_a_kernel_that_cannot_run_says_why(self, stand_in):
        def missing(*args, **kwargs):
            raise ImportError("no kernels package")

        stand_in(missing)
        with pytest.raises(TreeAttentionError, match="no kernels package"):
            self.check()

    def test_auto_takes_the_first_that_works(self, monkeypatch):
        broken: set[str] = set()

        def check(fast, device, dtype):
            if fast in broken:
                raise TreeAttentionError("not here")

        monkeypatch.setattr(attention, "check_kernel", check)
        for now, wanted in ((), "fa3"), (("fa3",), "varlen"), (("varlen",), None):
            broken.update(now)
            assert choose_attention("auto", torch.device("cuda"), torch.bfloat16).fast == wanted
        with pytest.raises(TreeAttentionError, match="not here"):
            choose_attention("fa3", torch.device("cuda"), torch.bfloat16)
        assert choose_attention("auto", torch.device("cuda"), torch.float32).fast is None

    def test_torchs_kernel_takes_the_arguments_that_we_pass(self):
        """Shapes only: its fake implementation checks names and kinds of arguments, not what is computed."""
        meta = {"device": "meta"}
        q, k = (
            torch.empty(7, 4, 16, dtype=torch.bfloat16, **meta),
            torch.empty(7, 2, 16, dtype=torch.bfloat16, **meta),
        )
        index, cu = torch.empty(11, dtype=torch.long, **meta), torch.empty(4, dtype=torch.int32, **meta)
        out = attention.varlen_attention(q, k, k, index, cu, cu, 3, 5, scaling=0.25, window=4)
        assert out.shape == q.shape
