"""Tokens and words: tokenizer, prompt text, transcript."""
