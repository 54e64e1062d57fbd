"""Role prompts and transcripts, with the golden model's vocabulary (400 pieces, byte fallback, SentencePiece)."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from personaplex.errors import PromptError, WeightsError
from personaplex.text.prompt import clean_prompt, count_prompt_tokens, prepare_prompt, wrap_system_tags
from personaplex.text.tokenizer import TextTokenizer
from personaplex.text.transcript import Transcript, Word, _OpenWord
from personaplex.web.html import transcript_html
from personaplex.weights.names import nano_folder

GOLDEN = Path(__file__).parent / "golden"
PAD, END_OF_PADDING = 3, 0


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(GOLDEN / "tokenizer_spm_32k_3.model")


# --- tags


@pytest.mark.parametrize(
    "text",
    [
        "be kind",
        "  be kind\n",
        "<system> be kind <system>",
        "<system> be kind",
        "be kind<system>",
    ],
)
def test_tags_are_there_once_with_one_space_inside(text):
    assert wrap_system_tags(text) == "<system> be kind <system>"


@pytest.mark.parametrize("text", ["<system>be kind<system>", "<system> be   kind  <system>"])
def test_what_is_tagged_is_taken_as_it_is(text, tokenizer):
    assert wrap_system_tags(f" {text}\n") == text
    assert prepare_prompt(text, tokenizer).tokens == tuple(tokenizer.encode(text))


@pytest.mark.parametrize("text", ["", "  \n\t", "<system>", "<system> <system>", "<system><system>"])
def test_nothing_to_say_gives_no_text_segment(text, tokenizer):
    assert wrap_system_tags(text) == ""
    assert prepare_prompt(text, tokenizer).tokens == ()


# --- prompt


def test_a_prompt_is_encoded_with_its_tags(tokenizer):
    prompt = prepare_prompt("You work for First Neuron Bank and your name is Sanni.", tokenizer)
    assert (
        tokenizer.decode(list(prompt.tokens))
        == prompt.text
        == ("<system> You work for First Neuron Bank and your name is Sanni. <system>")
    )
    assert not prompt.truncated
    assert prompt.unreadable == ""


def test_too_long_is_refused_with_the_count(tokenizer):
    text = "word " * 3000
    with pytest.raises(PromptError, match=f"{count_prompt_tokens(text, tokenizer)} tokens.*at most 200"):
        prepare_prompt(text, tokenizer)
    with pytest.raises(PromptError, match="characters"):
        prepare_prompt("a" * 1_000_000, tokenizer)


@pytest.mark.parametrize("text", ["please be kind to people " * 400, "a" * 5000, "é" * 5000, "short " + "x" * 5000])
def test_truncated_on_request_between_valid_tags(tokenizer, text):
    prompt = prepare_prompt(text, tokenizer, max_tokens=60, truncate=True)
    assert prompt.truncated
    assert 40 < len(prompt.tokens) <= 60 or prompt.text == "<system> short <system>"
    inner = prompt.text.removeprefix("<system> ").removesuffix(" <system>")
    assert prompt.text == f"<system> {inner} <system>"
    assert text.startswith(inner)


def test_no_room_for_anything(tokenizer):
    with pytest.raises(PromptError, match="no room"):
        prepare_prompt("hello", tokenizer, max_tokens=5, truncate=True)


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=80), st.integers(20, 60))
def test_truncation_always_fits(tokenizer, text, max_tokens):
    try:
        prompt = prepare_prompt(text, tokenizer, max_tokens, truncate=True)
    except PromptError as error:
        assert "no room" in str(error)  # noqa: PT017
    else:
        assert len(prompt.tokens) <= max_tokens


def test_control_characters_are_refused_by_place():
    with pytest.raises(PromptError, match=r"character 3 is U\+0007"):
        clean_prompt("hi\a")
    with pytest.raises(PromptError, match="broken text"):
        clean_prompt("hi \udcff")
    with pytest.raises(PromptError, match=r"U\+0000"):
        clean_prompt("\0")


def test_lines_and_tabs_stay_and_invisible_marks_go():
    assert clean_prompt("\ufeffone\r\ntwo\tthr\u200bee") == "one\ntwo\tthree"


def test_a_file_that_is_no_vocabulary(tmp_path):
    (tmp_path / "a.model").write_bytes(b"nonsense" * 100)
    with pytest.raises(WeightsError, match="SentencePiece"):
        TextTokenizer(tmp_path / "a.model")
    with pytest.raises(WeightsError):
        TextTokenizer(tmp_path / "missing.model")


def test_characters_that_a_model_cannot_read_are_counted_and_named():
    """One token stands for all of them in a row: "2 characters" were five."""
    nano = TextTokenizer(nano_folder() / "tokenizer_spm_32k_3.model")
    prompt = prepare_prompt("You work for \u4f60\u597d\u4f60\u597d \u00f1.", nano)
    assert prompt.unreadable == "5 characters: \u4f60, \u597d, \u00f1"
    assert prepare_prompt("You work for caf\u00e9 \u4f60.", nano).unreadable.startswith(
        ("1 character: ", "2 characters: ")
    )
    assert prepare_prompt("".join(map(chr, range(0x4E00, 0x4E20))), nano).unreadable == "32 characters"


def test_a_vocabulary_is_found_in_a_folder_with_umlauts_in_any_locale(tmp_path):
    """SentencePiece opened no such path in the C locale: reply was a traceback, the page stayed without a model."""
    folder = tmp_path / "Gr\u00fc\u00dfe & S\u00f6hne"
    folder.mkdir()
    shutil.copy(GOLDEN / "tokenizer_spm_32k_3.model", folder)
    code = "import sys; from personaplex.text.tokenizer import TextTokenizer as T; print(len(T(sys.argv[1])))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "tokenizer_spm_32k_3.model")], cwd=GOLDEN.parents[1], env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- transcript


def push_text(transcript: Transcript, tokenizer: TextTokenizer, text: str, frame: int) -> int:
    for token in tokenizer.encode(text):
        transcript.push(token, frame)
        frame += 1
    return frame


def test_words_start_at_their_first_piece(tokenizer):
    transcript = Transcript(tokenizer)
    tokens = [PAD, END_OF_PADDING, *tokenizer.encode("You name"), PAD, PAD]
    for frame, token in enumerate(tokens):
        transcript.push(token, frame)
    pieces = [tokenizer.piece(token) for token in tokens[2:-2]]
    second = next(i for i, piece in enumerate(pieces) if i and piece.startswith("▁".encode()))
    first_word, second_word = transcript.words
    assert (first_word.text, second_word.text) == ("You", "name")
    assert first_word.start_sec == pytest.approx(2 * 0.08)
    assert second_word.start_sec == pytest.approx((2 + second) * 0.08)
    assert first_word.end_sec == second_word.start_sec
    assert second_word.end_sec <= len(tokens) * 0.08


def test_a_word_does_not_last_through_the_pause_after_it(tokenizer):
    transcript = Transcript(tokenizer)
    frame = push_text(transcript, tokenizer, "You", 0)
    for silent in range(frame, 100):
        transcript.push(PAD, silent)
    push_text(transcript, tokenizer, "You", 100)
    assert transcript.words[0].end_sec < 0.5
    assert transcript.words[1].start_sec == 8.0


def test_tokens_that_are_no_text(tokenizer):
    transcript = Transcript(tokenizer)
    assert not any(transcript.push(token, i) for i, token in enumerate([0, 1, 2, 3, 400, 32_000, -1]))
    assert transcript.text == ""
    assert transcript.to_dict() == {"text": "", "chunks": []}
    assert transcript.to_webvtt() == "WEBVTT\n"


def test_characters_of_several_bytes_come_together(tokenizer):
    transcript = Transcript(tokenizer)
    push_text(transcript, tokenizer, "café 你好", 0)
    assert transcript.text == "café 你好"


def test_a_transcript_cannot_command_a_terminal(tokenizer):
    transcript = Transcript(tokenizer)
    by_piece = {tokenizer.piece(token): token for token in range(len(tokenizer))}
    for frame, byte in enumerate(b"a\x1b\x07\r\x00\x7fb"):
        transcript.push(by_piece[bytes([byte])], frame)
    assert transcript.text == "ab"


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"], exclude_characters="▁"), max_size=30))
def test_any_text_comes_back(tokenizer, word):
    transcript = Transcript(tokenizer)
    push_text(transcript, tokenizer, f"{word} and", 0)
    assert transcript.text == tokenizer.decode(tokenizer.encode(f"{word} and")).strip()


def test_growing_is_the_same_as_whole(tokenizer):
    tokens = [t for word in ("You", "work", "for", "us.") for t in [*tokenizer.encode(word), PAD, PAD]]
    whole, growing, texts = Transcript(tokenizer), Transcript(tokenizer), []
    for frame, token in enumerate(tokens):
        whole.push(token, frame)
    for frame, token in enumerate(tokens):
        if growing.push(token, frame):
            texts.append(growing.text)
    assert texts[-1] == "You work for us."
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert growing.words == whole.words


def test_an_hour_of_words_costs_no_more_to_read_than_a_minute(tokenizer, monkeypatch):
    """The page reads all words several times a second: what can no longer change is not worked out again."""
    transcript, said = Transcript(tokenizer), "and so it's on and "
    decoded: list[bytes] = []
    usual = _OpenWord.text.fget
    monkeypatch.setattr(_OpenWord, "text", property(lambda word: decoded.append(word.content) or usual(word)))
    costs = []
    for minute in range(60):
        push_text(transcript, tokenizer, said * 10, 750 * minute)
        decoded.clear()
        assert len(transcript.words) == 50 * (minute + 1)
        costs.append(len(decoded))
    assert max(costs) <= costs[0] < 10


def test_json_has_the_benchmark_layout(tokenizer):
    transcript = Transcript(tokenizer)
    push_text(transcript, tokenizer, "You work.", 10)
    data = json.loads(transcript.to_json())
    assert set(data) == {"text", "chunks"}
    assert data["text"] == "You work."
    for chunk, word in zip(data["chunks"], ["You", "work."], strict=True):
        assert set(chunk) == {"text", "timestamp"}
        assert chunk["text"] == word
        start, end = chunk["timestamp"]
        assert 0.8 <= start < end


def test_subtitles(tokenizer, monkeypatch):
    transcript = Transcript(tokenizer)
    words = [Word("Hi", 0.08, 0.4), Word("<you>.", 0.4, 0.9), Word("So", 1.0, 1.2), Word("on", 3661.5, 3662.0)]
    monkeypatch.setattr(Transcript, "words", words)
    assert transcript.to_webvtt() == (
        "WEBVTT\n\n"
        "00:00:00.080 --> 00:00:00.900\nHi &lt;you&gt;.\n\n"
        "00:00:01.000 --> 00:00:01.200\nSo\n\n"
        "01:01:01.500 --> 01:01:02.000\non\n"
    )


# --- contractions, with a vocabulary of the published kind: pieces, and bytes for what it lacks


@pytest.fixture(scope="module")
def published_like(tmp_path_factory) -> TextTokenizer:
    """A small vocabulary trained as the published one is: byte fallback, ``▁`` at a word's start."""
    lines = "you're I'm don't we'll it's they've he'd you I do not we will it is they have he would speak name".split()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20), model_writer=model, vocab_size=330, model_type="unigram",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2, pad_id=3,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    path.write_bytes(model.getvalue())
    return TextTokenizer(path)


def by_piece(tokenizer: TextTokenizer, *pieces: str) -> list[int]:
    """Tokens of these pieces; where there is none, of its characters, and of their bytes."""
    known = {tokenizer.piece(token): token for token in range(len(tokenizer) - 1, -1, -1)}
    tokens: list[int] = []
    for piece in pieces:
        for part in [piece] if piece.encode() in known else piece:
            whole = known.get(part.encode())
            tokens += [whole] if whole is not None else [known[bytes([byte])] for byte in part.encode()]
    return tokens


CONTRACTIONS = [
    (("▁you", "'", "re"), "you're"), (("▁I", "'", "m"), "I'm"), (("▁you", "'re"), "you're"), (("▁I", "'m"), "I'm"),
    (("▁don", "'", "t"), "don't"), (("▁y", "ou", "’", "r", "e"), "you’re"),
    # cut by a blank, as transcripts of other programs make them
    (("▁you", "▁'", "re"), "you're"), (("▁I", "▁'", "m"), "I'm"), (("▁you", "'", "▁re"), "you're"),
    (("▁I", "’", "▁m"), "I’m"),
]  # fmt: skip


@pytest.mark.parametrize("gap", [(), (PAD,), (PAD, END_OF_PADDING), (PAD,) * 20])
@pytest.mark.parametrize(("pieces", "word"), CONTRACTIONS)
def test_a_contraction_is_one_word_however_it_is_cut(published_like, pieces, word, gap):
    """Over pieces, and over frames: transcripts ended in "you'" and "I'"."""
    transcript = Transcript(published_like)
    tokens = [token for piece in (*pieces, "▁name") for token in (*by_piece(published_like, piece), *gap)]
    for frame, token in enumerate(tokens):
        transcript.push(token, frame)
    assert transcript.text == f"{word} name"
    assert [chunk["text"] for chunk in transcript.to_dict()["chunks"]] == [word, "name"]
    assert f">{escape(word)}</span>" in transcript_html(transcript.words)
    cues = transcript.to_webvtt().splitlines()
    assert any(line.split()[:1] == [word] for line in cues)
    assert transcript.words[0].end_sec <= transcript.words[1].start_sec


@pytest.mark.parametrize("words", ["the dogs' bone", "'tis rain", "rock 'n' roll", "he said 'so", "5 's"])
def test_other_apostrophes_stay_where_they_are(published_like, words):
    transcript = Transcript(published_like)
    push_text(transcript, published_like, words, 0)
    assert transcript.text == words
