import sentencepiece

from data.miniature import prose, vocabulary


def test_ids_and_training_are_llamas():
    model = vocabulary.train_tokenizer(prose.corpus())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert (pieces.unk_id(), pieces.bos_id(), pieces.eos_id(), pieces.pad_id()) == (0, 1, 2, -1)
    assert pieces.vocab_size() == vocabulary.VOCAB_SIZE
    for text in ("Gout  is\ntreated with colchicine. ", "Ménière, naïveté, 体, 🩺", "12,345", "\t\n"):
        assert pieces.decode(pieces.encode(text)) == text
    assert pieces.encode("1984", out_type=str) == ["▁", "1", "9", "8", "4"]
    assert pieces.encode("### Response:", out_type=str) == ["▁###", "▁Response", ":"]
