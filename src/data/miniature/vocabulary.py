"""The miniature's tokenizer: SentencePiece, trained like LLaMA's and twelve times smaller.

Byte-pair pieces with a fallback to bytes, digits one by one, no normalization, and LLaMA's ids: unknown 0, begin 1,
end 2, no padding (section 2.1 of arXiv 2302.13971; the ids are those of its published tokenizer.model).
"""

import io
from collections.abc import Iterable

import sentencepiece

from data.templates import PromptTemplate

VOCAB_SIZE = 2560
TEMPLATES = ("alpaca", "context_question")
REPEATS = 500  # of the prompts, so that their words become whole pieces


def train_tokenizer(documents: Iterable[str]) -> bytes:
    """The file tokenizer.model, trained on documents and on the words of the prompts; the same bytes every time."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        # Line by line: a line break within would become a piece, where LLaMA has it as a byte.
        sentence_iterator=(line for text in [*documents, *prompt_lines() * REPEATS] for line in text.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=1,
    )
    return model.getvalue()


def prompt_lines() -> list[str]:
    """The fixed lines of the prompts, the instructions of Medical Meadow and of the exam, and question words."""
    texts = ["What which Which where Where how How why Why who Who when When does Does is Is it?"]
    texts += [
        "Answer this question truthfully",
        "Answer this multiple choice question.",
        "The Answer to the question is:",
    ]
    for name in TEMPLATES:
        template = PromptTemplate.named(name)
        texts += [template.render("Answer", "Answer"), template.render("Answer")]
    return [line for text in texts for line in text.split("\n") if line.strip()]
