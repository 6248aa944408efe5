"""The host's frame parser and the output cut, against any input."""

import itertools
import json
import random
import struct
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm_env.repl.protocol import MAX_VALUES, BadFrame, Frame, FrameReader, cut, decode, field, strings
from rlm_env.repl.worker import Output, pack, pack_json

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
any_text = st.text(st.characters(exclude_categories=()) | st.characters(categories=("Cs",)), max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
bodies = st.dictionaries(text, values, max_size=4)
sizes = st.lists(st.integers(1, 200), min_size=1, max_size=20)
"""Of the pieces in which a stream arrives; again from the first one after the last."""
LIMIT = 1 << 20
slowly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no fault of the parser's."""


def pieces(stream, sizes):
    turns = itertools.cycle(sizes)
    while stream:
        size = next(turns)
        yield stream[:size]
        stream = stream[size:]


@given(st.lists(st.tuples(st.sampled_from("HQORDE"), bodies), max_size=6), sizes)
@settings(slowly, max_examples=50)
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(frames, sizes):
    stream = b"".join(pack_json(kind, body) for kind, body in frames)
    reader, got = FrameReader(LIMIT), []
    for piece in pieces(stream, sizes):
        reader.feed(piece)
        got += list(reader)
    assert got == [Frame(kind, body) for kind, body in frames]


@given(any_text, any_text)
@settings(slowly, max_examples=200)
def test_lone_surrogates_become_replacement_characters_and_pairs_stay(key, value):
    """They can be sent to no model and written to no trace."""

    def as_utf16(text):  # whose decoder pairs surrogates and replaces the others
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    frame = decode(json.dumps({"payload": [{key: value}, "\U0001f600 \\ud800"]}).encode("ascii"))
    assert frame == {"payload": [{as_utf16(key): as_utf16(value)}, "\U0001f600 \\ud800"]}
    json.dumps(frame, ensure_ascii=False).encode()


@given(st.binary(max_size=300))
@settings(slowly, max_examples=300)
def test_any_bytes_give_frames_or_badframe(data):
    reader = FrameReader(LIMIT)
    reader.feed(data)
    try:
        for frame in reader:
            assert isinstance(frame.body, dict)
    except BadFrame:
        pass


def test_fuzz_of_damaged_streams():
    """Twenty thousand honest streams with bytes flipped, dropped, doubled and swapped: never anything but
    frames or BadFrame, and never more memory than the frames' own."""
    rng = random.Random(0)
    bodies = [
        {"run": 1, "error": None, "answer": {"content": "ä\ud800" * 20, "ready": True}, "names": ["a"] * 20},
        {"id": 3, "name": "llm_batch", "payload": {"prompts": ["x" * 50, '"[{,\\']}},
        {"head": "a", "tail": "", "total": 1},
    ]
    honest = b"".join(pack_json(kind, body) for kind, body in zip("RQO", bodies, strict=True))
    outcomes = {"frames": 0, "bad": 0}
    tracemalloc.start()
    for _ in range(20_000):
        stream = bytearray(honest)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(stream))
            action = rng.randrange(4)
            if action == 0:
                stream[at] = rng.randrange(256)
            elif action == 1:
                del stream[at : at + rng.randint(1, 9)]
            elif action == 2:
                stream[at:at] = stream[at : at + rng.randint(1, 60)]
            else:
                stream[at:at] = rng.randbytes(rng.randint(1, 9))
        reader = FrameReader(LIMIT)
        reader.feed(bytes(stream))
        try:
            list(reader)
            outcomes["frames"] += 1
        except BadFrame:
            outcomes["bad"] += 1
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()
    assert min(outcomes.values()) > 100


@pytest.mark.parametrize(
    "stream",
    [
        struct.pack(">IB", 1 << 31, ord("R")),
        struct.pack(">IB", LIMIT + 1, ord("R")),
        pack_json("X", {}),
        pack("R", b"[1]"),
        pack("R", b"nothing"),
        pack("R", b'{"a": NaN}'),
        pack("R", b'{"a": -Infinity}'),
        pack("R", '{"a": "ä"}'.encode()),
        pack("R", b'{"a": ' + b"9" * 5000 + b"}"),
        pack("R", b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    ],
    ids=[
        "2 GiB",
        "over the limit",
        "host's kind",
        "list",
        "no JSON",
        "NaN",
        "inf",
        "utf-8",
        "digits",
        "depth",
    ],
)
def test_bad_frames(stream):
    reader = FrameReader(LIMIT)
    reader.feed(stream)
    with pytest.raises(BadFrame):
        reader.next()


def test_an_oversized_frame_is_refused_by_its_header_before_its_bytes_come():
    reader = FrameReader(1000)
    reader.feed(struct.pack(">IB", 1001, ord("Q")))
    with pytest.raises(BadFrame, match="1001"):
        reader.next()


def test_json_that_would_blow_up_in_memory_is_refused_and_long_text_is_not():
    bomb = b'{"a":[' + b",".join([b"[]"] * (MAX_VALUES // 2 + 10)) + b"]}"
    with pytest.raises(BadFrame, match="values"):
        decode(bomb)
    honest = json.dumps({"prompts": ["[a, b], {c}, " * 100_000 + '"\\']}).encode()
    assert honest.count(b",") > MAX_VALUES / 10
    assert decode(honest) == json.loads(honest)
    commas = json.dumps({"prompts": ["," * (MAX_VALUES + 10)]}).encode()
    assert decode(commas) == json.loads(commas)


@pytest.mark.parametrize("value", [None, 1.0, "1", True, [1], {}])
def test_fields_are_checked_for_their_type(value):
    with pytest.raises(BadFrame, match="id is"):
        field({"id": value}, "id", int)
    with pytest.raises(BadFrame):
        strings({"names": [value] if value != "1" else ["a"] * 11}, "names", 10, 5)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=400), st.integers(64, 200), sizes)
@slowly
def test_captured_output_is_cut_exactly_however_it_arrives(printed, limit, sizes):
    """What the supervisor keeps of a stream, then cut by the host, is the head and tail of the whole."""
    output = Output(limit)
    for piece in pieces(printed.encode(), sizes):
        output.feed(piece)
    taken = output.take()
    shown, missing = cut(taken["head"], taken["tail"], taken["total"], limit)
    assert taken["total"] == len(printed)
    if len(printed) <= limit:
        assert (shown, missing) == (printed, 0)
    else:
        assert missing == len(printed) - limit
        head, tail = limit - limit // 4, limit // 4
        note = f"\n[... {missing:,} characters cut ...]\n"
        assert shown == printed[:head] + note + printed[len(printed) - tail :]


@given(st.text(max_size=300), st.text(max_size=300), st.integers(0, 10**12), st.integers(64, 200))
@slowly
def test_the_cut_never_shows_more_than_its_limit_whatever_a_worker_claims(head, tail, total, limit):
    shown, missing = cut(head, tail, total, limit)
    note = f"\n[... {missing:,} characters cut ...]\n" if missing else ""
    assert len(shown) <= limit + len(note)
    assert missing >= 0


def test_capture_holds_no_more_than_its_limit():
    output = Output(8192)
    tracemalloc.start()
    chunk = "ä€x\n".encode() * 8192
    for _ in range(300):
        output.feed(chunk)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    taken = output.take()
    assert taken["total"] == 300 * 4 * 8192
    assert len(taken["head"]) == 8192
    assert len(taken["tail"]) == 2048
