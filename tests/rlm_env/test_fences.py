"""The fence parser, against examples of CommonMark's rules and by properties."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm_env.fences import CodeBlock, python_blocks


@pytest.mark.parametrize(
    ("reply", "codes"),
    [
        ("no code", []),
        ("```python\nx = 1\n```", ["x = 1"]),
        ("```py\nx\n```\nand\n```repl\ny\n```", ["x", "y"]),
        ("```\nbare\n```", ["bare"]),
        ("```json\n{}\n```", []),
        ("```bash\nls\n```\n```python\n1\n```", ["1"]),
        ("~~~python\nx\n~~~", ["x"]),
        ("````python\ns = '```'\n````", ["s = '```'"]),
        ("```python\ns = '''\n~~~\n'''\n```", ["s = '''\n~~~\n'''"]),
        ("text ```python\nx\n```", [""]),  # not at the start of a line: the last fence opens an empty block
        ("```python title=a.py\nx\n```", ["x"]),
        ("```{python}\nx\n```", ["x"]),
        ("```{r}\nx\n```", []),
        ("   ```python\nx\n   ```", ["x"]),
        ("    ```python\nx\n", []),  # four spaces are an indented block
        ("```python\r\nx = 1\r\n```\r\n", ["x = 1\r"]),
        ("```python\nif x:\n    y()\n\n\n    z()\n```", ["if x:\n    y()\n\n\n    z()"]),
        ("```x``` inline\n```python\n1\n```", ["1"]),
        ("```PYTHON\nx\n```", ["x"]),
    ],
)
def test_examples(reply, codes):
    assert [block.code for block in python_blocks(reply)] == codes


def test_an_unclosed_block_is_known():
    assert python_blocks("```python\nx = 1") == [CodeBlock("x = 1", closed=False)]
    assert python_blocks("```json\nx = 1") == []


slowly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no fault of the parser's."""
code_text = st.text(st.characters(blacklist_characters="`~\r", blacklist_categories=("Cs",)), max_size=200)


@given(st.lists(code_text, max_size=4), st.sampled_from(["```", "~~~~", "`````"]))
@slowly
def test_whatever_is_fenced_comes_back_exactly(codes, fence):
    reply = "intro\n" + "\nprose\n".join(f"{fence}python\n{code}\n{fence}" for code in codes)
    assert [block.code for block in python_blocks(reply)] == codes
    assert all(block.closed for block in python_blocks(reply))


@given(st.text(max_size=400))
@slowly
def test_any_text_is_parsed_without_error_and_code_is_a_part_of_it(reply):
    for block in python_blocks(reply):
        assert block.code in reply
