"""Templates: the published strings, written out by hand here; braces in users' texts; files and their refusals."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import TEMPLATES, PromptTemplate

WITH_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.

### Instruction:
Answer this.

### Input:
What is fever?

### Response:"""  # noqa: E501, the published sentence is one line

WITHOUT_INPUT = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Answer this.

### Response:"""

MEDALPACA_EMPTY = """\
Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.

### Instruction:
Answer this.

### Input:


### Response:
"""  # noqa: E501

SHORT_WITH_INPUT = """\
### Instruction:
Answer this.

### Input:
What is fever?

### Response:
"""

SHORT_WITHOUT_INPUT = """\
### Instruction:
Answer this.

### Response:
"""

GOLDEN = {
    ("alpaca", "What is fever?"): WITH_INPUT + "\n",
    ("alpaca", ""): WITHOUT_INPUT + "\n",
    ("alpaca_legacy", "What is fever?"): WITH_INPUT,
    ("alpaca_legacy", ""): WITHOUT_INPUT,
    ("alpaca_short", "What is fever?"): SHORT_WITH_INPUT,
    ("alpaca_short", ""): SHORT_WITHOUT_INPUT,
    ("medalpaca", "What is fever?"): WITH_INPUT + "\n",
    ("medalpaca", ""): MEDALPACA_EMPTY,
    ("context_question", "What is fever?"): "Context: What is fever?\n\nQuestion: Answer this.\n\nAnswer: ",
    ("context_question", ""): "Question: Answer this.\n\nAnswer: ",
}


@pytest.mark.parametrize(("name", "input"), GOLDEN)
def test_published_strings(name, input):
    assert PromptTemplate.named(name).render("Answer this.", input) == GOLDEN[name, input]


def test_every_template_has_golden_strings():
    assert {name for name, _ in GOLDEN} == set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
@given(instruction=st.text("ab{}\\n", max_size=12), input=st.text("x{}input", max_size=12))
def test_braces_in_texts_are_text(name, instruction, input):
    prompt = PromptTemplate.named(name).render(f"<{instruction}{{input}}>", f"[{input}{{instruction}}]")
    assert f"<{instruction}{{input}}>" in prompt and f"[{input}{{instruction}}]" in prompt


@pytest.mark.parametrize("name", TEMPLATES)
def test_dictionary_and_file_round_trip(tmp_path, name):
    template = PromptTemplate.named(name)
    path = tmp_path / "stored.json"
    path.write_text(json.dumps(template.to_dict()))
    assert PromptTemplate.from_file(path) == template
    assert PromptTemplate.from_dict(template.to_dict()) == template


USER = {
    "description": "mine",
    "prompt_input": "{{json}} {instruction}|{input}> ",
    "prompt_no_input": "{instruction}> ",
    "response_split": ">",
}


def test_a_users_file_in_alpaca_loras_form(tmp_path):
    path = tmp_path / "vigogne.json"
    path.write_text(json.dumps(USER))
    template = PromptTemplate.find(path)
    assert template.name == "vigogne"
    assert template.render("a", "b") == USER["prompt_input"].format(instruction="a", input="b") == "{json} a|b> "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_input": "{instruction}>"}, r"prompt_input: lacks the placeholder \{input\}"),
        ({"prompt_no_input": ">"}, r"prompt_no_input: lacks the placeholder \{instruction\}"),
        ({"prompt_input": "{instrution} {input}>"}, r"placeholders \['input', 'instrution'\]"),
        ({"prompt_input": "{instruction!r} {input}>"}, "without a format"),
        ({"prompt_input": '{"a": {instruction} {input}>'}, r"write \{\{ and \}\}"),
        ({"prompt_input": "{instruction} {input} {>"}, r"write \{\{ and \}\}"),
        ({"response_split": "### Antwort:"}, "does not occur in prompt_input"),
        ({"response_split": ""}, "does not occur in prompt_input"),
        ({"prompt_no_input": None}, '"prompt_no_input" is null'),
        ({"response_split": 3}, '"response_split" is a number'),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(USER | change))
    with pytest.raises(ValueError, match=message) as refused:
        PromptTemplate.from_file(path)
    assert "mine" in str(refused.value)


def test_a_file_with_a_missing_key_or_no_json(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"prompt_input": "{instruction}{input}>"}')
    with pytest.raises(ValueError, match=r'mine\.json: the key "prompt_no_input" is missing'):
        PromptTemplate.from_file(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"mine\.json: not valid JSON"):
        PromptTemplate.from_file(path)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"unknown template 'alpacca'; known: alpaca, alpaca_legacy"):
        PromptTemplate.named("alpacca")
    with pytest.raises(ValueError, match=r"'alpacca' is no file and none of the templates alpaca, "):
        PromptTemplate.find("alpacca")
    assert PromptTemplate.find("medalpaca") is TEMPLATES["medalpaca"]
