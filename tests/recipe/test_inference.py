"""Loading a model to ask: what the flags mean, which template is taken, and that it says so."""

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_llama, train_tokenizer

from data import PromptTemplate, encode_jointly
from int8 import Int8Linear, product_backend
from llama import LlamaConfig, Tokenizer, save_checkpoint
from lora import LoraConfig, LoraLinear, add_lora, save_adapter
from native import c_backend
from recipe import MINIATURE, ModelOptions, load_for_inference, prompt_ids
from recipe.companions import write_prompt
from recipe.inference import choose_template, inference_dtype, readable

CPU = torch.device("cpu")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    save_checkpoint(tiny_llama(0, vocab_size=330), folder)
    train_tokenizer(folder)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    save_adapter(add_lora(tiny_llama(0, vocab_size=330), LoraConfig(2, 4, 0.0, ("q_proj",))), folder)
    return folder


def test_every_flag_reaches_the_model(base: Path, adapter: Path) -> None:
    options = ModelOptions(
        str(base), adapter, int8=True, int8_threshold=3.0, dtype="bfloat16", device="cpu", template="medalpaca"
    )
    inference = options.load()
    attention = inference.model.layers[0].attention
    assert isinstance(attention.wq, LoraLinear)
    assert isinstance(attention.wk, Int8Linear)
    assert attention.wk.threshold == 3.0
    assert inference.model.tok_embeddings.weight.dtype == torch.bfloat16
    assert not inference.model.training
    how = f"int8 by {product_backend('cpu')}, single tokens by {c_backend()}, bfloat16, adapter {adapter}, on cpu"
    how += ", template medalpaca (as asked)"
    assert inference.description == f"{base}, {readable(inference.model.config.n_parameters)} parameters, {how}"


def test_the_miniature_by_name_is_the_default() -> None:
    named, default = ModelOptions(base=MINIATURE).load(), load_for_inference(progress=False)
    assert named.description == default.description
    assert named.description.startswith(MINIATURE)


def test_the_template_and_where_it_came_from(base: Path, adapter: Path) -> None:
    def chosen(name: str | None = None, tuned: Path | None = adapter) -> str:
        template, origin = choose_template(name, tuned, base)
        return f"{template.name} ({origin})"

    assert chosen() == "alpaca (default: none was saved)"
    write_prompt(PromptTemplate.named("context_question"), base)
    assert chosen() == chosen(tuned=None) == "context_question (saved with the base)"
    write_prompt(PromptTemplate.named("medalpaca"), adapter)
    assert chosen() == "medalpaca (saved with the adapter)"
    assert chosen(tuned=None) == "context_question (saved with the base)"
    assert chosen("alpaca_short") == "alpaca_short (as asked)"
    with pytest.raises(ValueError, match="none of the templates"):
        chosen("alpacca")


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    train_tokenizer(tmp_path)
    save_checkpoint(tiny_llama(0, vocab_size=300), tmp_path)
    with pytest.raises(ValueError, match="330 pieces, the embedding 300 rows"):
        load_for_inference(tmp_path, progress=False)


def test_dtypes() -> None:
    large, small = LlamaConfig.named("7B"), LlamaConfig(8, 8, 1, 2, 2, 8)
    assert inference_dtype("auto", large, CPU) == torch.bfloat16
    assert inference_dtype("auto", small, CPU) == torch.float32
    assert inference_dtype("auto", small, torch.device("cuda")) == torch.bfloat16
    assert inference_dtype("float16", small, CPU) == torch.float16
    with pytest.raises(ValueError, match="auto, float32"):
        inference_dtype("int4", large, CPU)


@pytest.mark.parametrize("template", ["alpaca", "alpaca_legacy", "medalpaca", "context_question"])
def test_a_prompt_ends_where_the_answer_began_in_training(base: Path, template: str) -> None:
    tokenizer, asked = Tokenizer(base), PromptTemplate.named(template)
    joint, border = encode_jointly(asked.render("What is gout?", "pain"), "is rest.", tokenizer)
    assert prompt_ids(asked, tokenizer, "What is gout?", "pain") == joint[:border]
    if template == "context_question":
        assert asked.render("What is gout?").endswith(" ")  # the case that needs care
