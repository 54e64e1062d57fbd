"""The recipe of the small language model: tokenizer, dialogues as token columns, training, export."""
