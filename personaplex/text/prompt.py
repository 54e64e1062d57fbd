"""The text prompt: cleaned, tagged, counted, cut."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from personaplex.config import MOST_TOLD_TOKENS, PromptConfig
from personaplex.errors import PromptError
from personaplex.text.tokenizer import TextTokenizer

SYSTEM_TAG = "<system>"

MAX_PROMPT_CHARACTERS = 100_000
MAX_TOLD_CHARACTERS = 20 * MOST_TOLD_TOKENS
"""More than its tokens can stand for; counting them costs the engine's thread time."""
MOST_LISTED = 8
"""Characters that a model cannot read are named up to that many."""


@dataclass(frozen=True)
class TextPrompt:
    """A role, ready to be forced into the text stream one token per frame."""

    tokens: tuple[int, ...] = ()  # empty: no text segment
    text: str = ""  # with its tags, as encoded
    truncated: bool = False
    unreadable: str = ""  # "2 characters: 你, 好": those that the vocabulary lacks


def wrap_system_tags(text: str) -> str:
    """``<system> … <system>``, one space inside each tag.

    What has both tags already is taken as it is, as the model's authors do: to the vocabulary a tag is text, and a
    space beside it counts. A single tag is not added again. Text of nothing but blanks and tags gives "".
    """
    given = text.strip()
    inner = given.removeprefix(SYSTEM_TAG).removesuffix(SYSTEM_TAG).strip()
    if not inner:
        return ""
    has_both = given.startswith(SYSTEM_TAG) and given.endswith(SYSTEM_TAG)
    return given if has_both else f"{SYSTEM_TAG} {inner} {SYSTEM_TAG}"


def clean_prompt(text: str) -> str:
    """The prompt without characters that cannot be seen; raises PromptError for control characters.

    Line ends and tabs are allowed. Zero-width and direction marks, which copying leaves behind, are
    dropped. Other control characters and undecodable bytes come from a wrong file or a broken
    terminal, so they are refused and not guessed at.
    """
    kept = []
    for place, character in enumerate(text.replace("\r\n", "\n"), start=1):
        category = unicodedata.category(character)
        if category == "Cs" or (category == "Cc" and character not in "\n\r\t"):
            raise PromptError(
                f"the prompt's character {place} is U+{ord(character):04X}, a control character or broken text; "
                "remove it and try again"
            )
        if category != "Cf":
            kept.append(character)
    return "".join(kept)


def count_prompt_tokens(text: str, tokenizer: TextTokenizer) -> int:
    """Tokens of a role as typed, its tags included: what the limit counts."""
    wrapped = wrap_system_tags(clean_prompt(text))
    return len(tokenizer.encode(wrapped)) if wrapped else 0


def prepare_prompt(
    text: str,
    tokenizer: TextTokenizer,
    max_tokens: int = PromptConfig.max_text_tokens,
    truncate: bool = False,
) -> TextPrompt:
    """Clean, tag and encode a role. ``max_tokens`` counts the tags too.

    A longer one is cut at a word's end when ``truncate`` is set, and raises PromptError otherwise.
    """
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise PromptError(f"the prompt has {len(text)} characters; at most {max_tokens} tokens are allowed: shorten it")
    wrapped = wrap_system_tags(clean_prompt(text))
    if not wrapped:
        return TextPrompt()
    tokens = tokenizer.encode(wrapped)
    truncated = len(tokens) > max_tokens
    if truncated and not truncate:
        raise PromptError(
            f"the prompt has {len(tokens)} tokens; this model takes at most {max_tokens}: "
            "shorten it, or ask for it to be truncated"
        )
    if truncated:
        wrapped = _cut_to(wrapped, tokenizer, max_tokens)
        tokens = tokenizer.encode(wrapped)
    return TextPrompt(tuple(tokens), wrapped, truncated, _unreadable(wrapped, tokenizer))


def wrap_told(text: str) -> str:
    """Clean and tag what a conversation is to be told; raises PromptError for text that says nothing or is no text."""
    if len(text) > MAX_TOLD_CHARACTERS:
        raise PromptError(f"the text to be told has {len(text)} characters; {MOST_TOLD_TOKENS} tokens are allowed")
    wrapped = wrap_system_tags(clean_prompt(text))
    if not wrapped:
        raise PromptError("there is nothing to tell; give a sentence, as 'The pool is closed today.'")
    return wrapped


def prepare_told(text: str, tokenizer: TextTokenizer, told_before: int) -> TextPrompt:
    """Clean, tag and encode what a conversation is told while it lasts.

    told_before: tokens that it was told already. Raises PromptError for text that says nothing, and for more than
    ``MOST_TOLD_TOKENS`` in all.
    """
    wrapped, left = wrap_told(text), MOST_TOLD_TOKENS - told_before
    tokens = tokenizer.encode(wrapped)
    if len(tokens) > left:
        before = f", and {told_before} were told before" if told_before else ""
        raise PromptError(
            f"the text to be told has {len(tokens)} tokens with its tags; {MOST_TOLD_TOKENS} are allowed in one "
            f"conversation{before}: " + (f"shorten it to {left}" if left else "start another conversation")
        )
    return TextPrompt(tuple(tokens), wrapped, unreadable=_unreadable(wrapped, tokenizer))


def _unreadable(text: str, tokenizer: TextTokenizer) -> str:
    """Number and list of the characters that the vocabulary lacks: a token of unknown text may stand for several."""
    lacking = tokenizer.unknown_characters(text)
    if not lacking:
        return ""
    some = ", ".join(dict.fromkeys(lacking)) if len(set(lacking)) <= MOST_LISTED else ""
    return f"{len(lacking)} {'character' if len(lacking) == 1 else 'characters'}" + (f": {some}" if some else "")


def _cut_to(wrapped: str, tokenizer: TextTokenizer, max_tokens: int) -> str:
    """The longest beginning, in whole words where one fits, that keeps both tags within the limit."""

    def fits(beginning: str) -> bool:
        return len(tokenizer.encode(wrap_system_tags(beginning))) <= max_tokens

    words = wrapped[len(SYSTEM_TAG) : -len(SYSTEM_TAG)].split()
    count = _largest(len(words), lambda count: fits(" ".join(words[:count])))
    if count:
        return wrap_system_tags(" ".join(words[:count]))
    count = _largest(len(words[0]), lambda count: fits(words[0][:count]))
    if count:
        return wrap_system_tags(words[0][:count])
    raise PromptError(f"a prompt of at most {max_tokens} tokens has no room for text between its tags")


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest of 1 … limit that fits, 0 if none; nearly monotonic, as tokens of a longer text are."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    while low and not fits(low):
        low -= 1
    return low
