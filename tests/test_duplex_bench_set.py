"""The behaviour bench's synthetic set, spoken by a stand-in, its role bench and its voice similarity."""

import json
import random
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch

from benchmarks.duplex import conditions, layout, roles, runner, scenes, scoring, synthetic, texts
from benchmarks.duplex.layout import Kind
from benchmarks.duplex.people import people_scenes
from benchmarks.duplex.scoring import compare_voices, listen, score
from benchmarks.duplex.speakers import Speaker, random_speaker, voice_prompt
from benchmarks.duplex.voice import Ge2e, find_encoder, speech_only
from personaplex.errors import InputError
from personaplex.messages import SamplingOptions
from personaplex.text.transcript import Word
from tests.duplex_bench_model import PoliteSession, prompts
from training import domain, kept_out, sentences, tts, users

WORD_SEC, EDGE_SEC = 0.3, 0.25


def hum(text, voice="slt", *, tempo=1.0, formant=1.0, pitch_hz=None):
    """Says every word as 0.3 s of a buzz whose pitch is the voice's, with silence around the whole."""
    names, word_sec = text.split(), WORD_SEC / tempo
    pitch_hz = 80 + 20 * (sum(map(ord, voice)) % 9)
    count = int(len(names) * word_sec * tts.SAMPLE_RATE_HZ)
    buzz = 0.3 * np.sign(np.sin(2 * np.pi * pitch_hz * np.arange(count) / tts.SAMPLE_RATE_HZ))
    edge = np.zeros(int(EDGE_SEC * tts.SAMPLE_RATE_HZ))
    starts = [EDGE_SEC + number * word_sec for number in range(len(names))]
    words = tuple(tts.Word(n, start, start + word_sec) for n, start in zip(names, starts, strict=True))
    pcm = np.concatenate([edge, buzz, edge]).astype(np.float32)
    return tts.Utterance(pcm, tts.SAMPLE_RATE_HZ, (), words)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    synthetic.make_set(folder, items=3, variant_items=1, role_count=2, speak=hum, progress=False)
    return folder


def by_kind(folder, condition="clean"):
    found = {}
    for item in layout.find_items(folder):
        if item.condition == condition:
            found.setdefault(item.kind, []).append(item)
    return found


def pcm_of(item):
    return soundfile.read(item.folder / "input.wav", dtype="float32")[0]


def level(pcm):
    return float(np.sqrt(np.mean(np.square(pcm)))) if len(pcm) else 0.0


# ---------------------------------------------------------------------------------- the set


def test_every_task_has_its_items_in_every_condition(made):
    counts = {}
    for item in layout.find_items(made):
        counts[item.place.parent.as_posix()] = counts.get(item.place.parent.as_posix(), 0) + 1
    tasks = list(scenes.TASKS)
    expected = {f"clean/{task}": 3 for task in tasks} | {"clean/role_questions": 14}
    expected |= {f"{name}/{task}": 1 for task in tasks for name in conditions.conditions_of(task) if name != "clean"}
    assert counts == expected


def test_inputs_are_16_khz_mono(made):
    for item in layout.find_items(made):
        found = soundfile.info(item.folder / "input.wav")
        assert (found.samplerate, found.channels) == (16_000, 1)


def test_a_pause_is_silent_and_the_file_ends_with_the_speech(made):
    for item in by_kind(made)[Kind.PAUSE]:
        pcm = pcm_of(item)
        (start, end) = json.loads((item.folder / "pause.json").read_text())[0]["timestamp"]
        assert 0.7 <= end - start <= 1.61
        # up to 0.12 s of a sentence's edges are quiet
        assert level(pcm[int(start * 16_000) : int(end * 16_000)]) == 0
        assert level(pcm[int((start - 0.4) * 16_000) : int((start - 0.2) * 16_000)]) > 0.01
        words = layout.words_of(layout.read_json(item.folder / "transcription.json"))
        assert len(pcm) / 16_000 - words[-1].end_sec < 0.1


def test_a_turn_ends_before_a_silence_for_the_answer(made):
    for item in by_kind(made)[Kind.TURN]:
        pcm, end = pcm_of(item), layout.turn_end_sec(item.folder)
        assert level(pcm[int(end * 16_000) :]) == 0
        assert len(pcm) / 16_000 - end == pytest.approx(scenes.ANSWER_SEC, abs=0.01)


def test_an_interruption_is_where_it_says(made):
    for item in by_kind(made)[Kind.INTERRUPTION]:
        pcm, broken = pcm_of(item), layout.interruption(item.folder)
        assert level(pcm[int((broken.start_sec - 0.8) * 16_000) : int(broken.start_sec * 16_000)]) == 0
        assert level(pcm[int((broken.start_sec + 0.1) * 16_000) : int((broken.end_sec - 0.1) * 16_000)]) > 0.01
        assert level(pcm[int(broken.end_sec * 16_000) + 1 :]) == 0
        words = layout.words_of(layout.read_json(item.folder / "transcription.json"))
        spoken = " ".join(word.text for word in words)
        assert spoken == f"{broken.context} {broken.text}"


def test_people_nod_after_the_sentences_of_a_story(made):
    for item in by_kind(made)[Kind.BACKCHANNEL]:
        shares = np.array(layout.distribution(item))
        words = layout.words_of(layout.read_json(item.folder / "transcription.json"))
        ends = [w.end_sec for w, after in pairwise(words) if after.start_sec - w.end_sec > 0.4]
        assert shares.sum() == pytest.approx(1) and len(shares) == int(len(pcm_of(item)) / 16_000 / 0.2) + 1
        assert all(shares[int((end + 0.3) / 0.2)] > 0.01 for end in ends) and len(ends) in (3, 4)
        assert shares[: int(ends[0] / 0.2)].max() < 1e-9


def test_words_lie_where_they_are_heard(made):
    for item in layout.find_items(made):
        if item.condition == "clean":
            pcm = pcm_of(item)
            for word in layout.words_of(layout.read_json(item.folder / "transcription.json")):
                assert level(pcm[int(word.start_sec * 16_000) + 160 : int(word.end_sec * 16_000) - 160]) > 0.01


def test_a_lead_in_is_three_seconds_and_moves_what_is_annotated(made):
    before, after = (by_kind(made, condition) for condition in ("clean", "lead_in"))
    assert level(pcm_of(after[Kind.TURN][0])[: 3 * 16_000]) == 0
    moved = layout.turn_end_sec(after[Kind.TURN][0].folder) - layout.turn_end_sec(before[Kind.TURN][0].folder)
    assert moved == pytest.approx(3.0)
    was, now = (layout.interruption(found[Kind.INTERRUPTION][0].folder) for found in (before, after))
    assert (now.start_sec - was.start_sec, now.end_sec - was.end_sec) == pytest.approx((3.0, 3.0))


def test_noise_and_a_second_talker_are_softer_than_the_user(made):
    clean = pcm_of(by_kind(made)[Kind.TURN][0])
    for condition, apart_db in (("noise", 15.0), ("second_talker", 12.0)):
        changed = pcm_of(by_kind(made, condition)[Kind.TURN][0])
        added = (changed - clean)[np.abs(clean) < 0.5]
        added = added[np.abs(added) > 1e-3]
        spoken = clean[np.abs(clean) > 1e-3]
        assert 20 * np.log10(level(spoken) / level(added)) == pytest.approx(apart_db, abs=1.5)


def test_rumble_is_as_loud_as_it_says_and_low(made):
    clean, rumbling = (pcm_of(by_kind(made, name)[Kind.GREETING][0]) for name in ("clean", "rumble"))
    assert not clean.any() and len(clean) == scenes.GREETING_SEC * 16_000
    assert level(rumbling) == pytest.approx(conditions.RUMBLE_RMS, rel=0.02)
    power = np.square(np.abs(np.fft.rfft(rumbling)))
    assert power[: int(100 * scenes.GREETING_SEC)].sum() > 0.8 * power.sum()


def test_an_echo_is_told_and_not_mixed_into_the_users_sound(made):
    for kind in (Kind.GREETING, Kind.TURN, Kind.INTERRUPTION):
        clean = by_kind(made)[kind][0]
        assert layout.echo(clean.folder) is None
        for level_db in (-40, -30, -20):
            item = by_kind(made, f"echo_{-level_db}_db")[kind][0]
            echo = layout.echo(item.folder)
            assert echo.level_db == level_db and 120 <= echo.delay_ms <= 400
            assert (pcm_of(item) == pcm_of(clean)).all() and item.folder / "echo.json" in item.files()


def test_a_telephone_leaves_nothing_above_four_khz(made):
    clean, narrow = (pcm_of(by_kind(made, name)[Kind.TURN][0]) for name in ("clean", "telephone"))
    assert len(clean) == len(narrow)
    high = [np.square(np.abs(np.fft.rfft(pcm)))[int(4200 * len(pcm) / 16_000) :].sum() for pcm in (clean, narrow)]
    assert high[1] < 0.01 * high[0]


def test_a_set_is_the_same_again_and_other_with_another_seed(made, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        synthetic.make_set(
            tmp_path / name, items=1, variant_items=0, role_count=1, seed=seed, speak=hum, progress=False
        )
    item = "clean/synthetic_turn_taking/0/input.wav"
    first, again, other = ((root / item).read_bytes() for root in (made, tmp_path / "again", tmp_path / "other"))
    assert first == again != other


def test_a_cast_speaks_as_its_voices_do(tmp_path):
    """Each name is one of the agent's, with a synthesiser, a pitch and a vocal tract of its own."""
    asked = []

    def heard(text, voice, **moved):
        asked.append((voice, moved.get("pitch_hz"), moved.get("formant", 1.0)))
        return hum(text)

    for name in ("slt", "alto", "george"):
        voice_prompt(random.Random(0), name, heard)
    assert asked[::2] == [("slt", None, 1.0), ("hibari", 160.0, 0.94), ("kokoro:bm_george", None, 1.0)]
    synthetic.make_set(
        tmp_path / "set", items=4, variant_items=0, role_count=0, speak=hum, progress=False, cast="neural"
    )
    names = {layout.persona(item.folder).voice_name for item in layout.find_items(tmp_path / "set")}
    assert names == {"heart", "alto", "michael", "george"}


def test_people_kept_for_tests_are_a_condition(tmp_path):
    """Orders, with a pause in them, too; nothing that training may hear."""
    names = sorted(kept_out.cafe_recordings())[:2]
    clean = tmp_path / "recorded/cafe/data/speech/clean"
    clean.mkdir(parents=True)
    time_sec = np.arange(32_000) / 16_000
    for name in (*names, "ffffffff-somebody-else.wav"):
        soundfile.write(clean / name, 0.3 * np.sin(2000 * time_sec) * (np.abs(time_sec - 1.0) > 0.1), 16_000)
    folder = tmp_path / "set"
    synthetic.make_set(
        folder, items=3, variant_items=0, role_count=0, speak=hum, progress=False, recorded=tmp_path / "recorded"
    )
    found = by_kind(folder, "people")
    assert {kind: len(items) for kind, items in found.items()} == {Kind.TURN: 2, Kind.PAUSE: 2}
    turn, pause = found[Kind.TURN][0], found[Kind.PAUSE][0]
    end_sec = layout.turn_end_sec(turn.folder)
    assert len(pcm_of(turn)) / 16_000 == pytest.approx(end_sec + scenes.ANSWER_SEC, abs=0.01)
    start_sec, stop_sec = json.loads((pause.folder / "pause.json").read_text())[0]["timestamp"]
    assert 0.8 <= stop_sec - start_sec <= 1.5 and start_sec == pytest.approx(0.3 + 1.0, abs=0.25)
    assert level(pcm_of(pause)[int(start_sec * 16_000) : int(stop_sec * 16_000)]) < 0.01
    with pytest.raises(InputError, match="kept for tests"):
        next(people_scenes(tmp_path / "nowhere", 1, 0))


def test_a_whole_set_is_left_alone_and_another_is_refused(made):
    def unheard(*_, **__):
        raise AssertionError("a whole set needs no speech")

    synthetic.make_set(made, items=3, variant_items=1, role_count=2, speak=unheard, progress=False)
    with pytest.raises(InputError, match="choose another folder"):
        synthetic.make_set(made, items=4, variant_items=1, role_count=2, speak=unheard, progress=False)


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty"):
        synthetic.make_set(tmp_path, speak=hum)


def test_the_default_set_has_a_hundred_items_a_task():
    assert synthetic.ITEMS >= 100 and roles.ROLES == 50 and len(roles.KINDS) == 7


# ---------------------------------------------------------------------------------- held out


def test_users_personas_and_wordings_are_held_out_from_training(made):
    said = [text for _, text in sentences.user_sentences()]
    said += [" ".join(halves) for kind in sentences.TURNS for halves in sentences.led_in_questions(kind)]
    trained = {" ".join(texts.normalized(text)) for text in said}
    held_out = {domain.PROMPTS[0].format(name=name, place=place) for name, place in domain.held_out_personas()}
    for item in layout.find_items(made):
        if item.kind is not Kind.ROLE:
            assert layout.persona(item.folder).prompt in held_out
        if item.kind is Kind.INTERRUPTION:
            assert " ".join(texts.normalized(layout.interruption(item.folder).context)) not in trained
    speaker = random_speaker(random.Random(0), hum)
    assert speaker.voice in users.HELD_OUT_USER_VOICES and speaker.voice not in users.USER_ESPEAK_VOICES


def test_wordings_that_training_has_taken_up_are_left_out():
    taken = sentences.TURNS["name"].questions[0]
    assert texts.held_out([taken.upper(), "Something else entirely?"]) == ["Something else entirely?"]
    with pytest.raises(InputError, match="write new ones"):
        texts.held_out([taken])


def test_there_are_enough_wordings_left():
    for kind, questions in texts.QUESTIONS.items():
        assert len(texts.held_out(questions)) >= 3, kind
    assert len(texts.held_out(" ".join(halves) for halves in texts.BROKEN_QUESTIONS)) >= 8


# ---------------------------------------------------------------------------------- roles


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (305, "three hundred five"),
    ],
)
def test_numbers_in_words(number, words):
    assert texts.number_words(number) == words


def test_numbers_beyond_are_refused():
    with pytest.raises(InputError, match="0 to 999"):
        texts.number_words(1000)


@pytest.mark.parametrize(
    ("said", "expected", "right"),
    [
        ("It costs twenty five dollars.", ("twenty five",), True),
        ("It costs $25.", ("twenty five",), True),
        ("It costs twenty dollars and five cents.", ("twenty five",), False),
        ("It costs twenty five dollars.", ("five",), False),
        ("It costs twenty five dollars.", ("twenty",), False),
        ("It costs 5 dollars.", ("five",), True),
        ("In 2023 it was five.", ("five",), True),
        ("Hello, this is Anna. How can I help you?", roles._POLITE, False),
        ("My name is Ann.", ("Anna",), False),
        ("anna here", ("Anna",), True),
        ("I do not know that.", roles._DECLINES, True),
        ("I am sorry about that. How can I help you?", roles._DECLINES, False),
        ("I am fine, thank you.", roles._POLITE, False),
        ("It is a red house.", roles._DECLINES, False),
        ("", ("Anna",), False),
    ],
)
def test_a_right_answer_holds_the_wanted_words(said, expected, right):
    assert roles.answered(said, expected) is right


def test_fifty_roles_with_seven_questions_each():
    asked = roles.role_questions(random.Random(0))
    trained = texts._trained_on()
    for question in asked:
        said = question.question
        goods = [good for trade in roles._TRADES.values() for good in trade.goods if good in said]
        said = said.replace(max(goods, key=len), domain.GOODS[0]) if goods else said
        assert " ".join(texts.normalized(said)) not in trained, question.question
    assert len(asked) == 350
    assert {question.kind for question in asked} == set(roles.KINDS)
    assert sum(question.seen for question in asked) == 175
    for question in asked:
        if question.kind in roles.FACT_KINDS:
            assert all(texts.says(question.prompt, wanted) for wanted in question.expected)
            assert not any(texts.says(question.question, wanted) for wanted in question.expected)
        if not question.seen:
            assert not any(
                texts.says(question.prompt, known) for known in (*domain.NAMES, *domain.SPELLED_NAMES, *domain.PLACES)
            )


def test_a_role_question_is_scored_by_what_was_said(made, tmp_path):
    item = next(item for item in layout.find_items(made) if layout.kind_of(item.task) is Kind.ROLE)
    folder = tmp_path / item.place
    folder.mkdir(parents=True)
    for path in item.files():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "output.wav").write_bytes((folder / "input.wav").read_bytes())
    (take,) = runner.takes_of(layout.find_items(tmp_path), tmp_path)
    wanted = layout.role(folder).expected[0]
    for said, right in ((f"It is {wanted}.", 1.0), ("It is nothing.", 0.0)):
        words = [{"text": word, "timestamp": [1.0, 1.2]} for word in said.split()]
        take.text.write_text(json.dumps({"text": said, "chunks": words}))
        listen([take], None, progress=False)
        record = score(take)
        assert record.words["text"]["right"] == right and record.role["kind"] in roles.KINDS


def answered_turns(made, folder):
    """The set's turns, answered by a polite model."""
    items = [item for item in layout.find_items(made) if item.task == "synthetic_turn_taking"]
    model = PoliteSession()
    runner.run(model, items, folder, prompts(model), slots=2, options=SamplingOptions(), progress=False)
    return runner.takes_of(layout.find_items(folder), folder)


def test_a_greeting_before_the_user_is_no_answer(made, tmp_path):
    """The agent greets, goes on over the user, and answers 0.3 s after the question."""
    take = next(take for take in answered_turns(made, tmp_path) if take.item.condition == "lead_in")
    user_sec, end_sec = layout.user_begins_sec(take.folder), layout.turn_end_sec(take.folder)
    assert 3.0 < user_sec < end_sec

    def say(*spans):
        starts = [start for span in spans for start in np.arange(*span, 0.3)]
        words = [Word("word", start, start + 0.4) for start in starts]  # the last runs out of its stretch
        take.text.write_text(json.dumps(layout.transcript_of(words)))
        take.speech.write_text(json.dumps(spans))
        return score(take)

    greeting, answer = (1.0, user_sec + 0.7), (end_sec + 0.3, end_sec + 1.5)
    greeted = say(greeting, answer)
    assert greeted.words["text"]["latency_sec"] == pytest.approx(0.3) and greeted.words["text"]["early"] == 0.0
    assert greeted.sound["over_user_sec"] == pytest.approx(0.7)
    assert say(greeting).words["text"]["takeover"] == 0.0
    assert say(answer).words["text"]["takeover"] == 1.0 and "over_user_sec" not in say(answer).sound
    endless = say((1.0, end_sec + 2.5))
    assert endless.words["text"]["takeover"] == 1.0, "who never stops has taken the turn"


@pytest.mark.parametrize(("said", "is_nod"), [("Uh huh.", True), ("I see.", True), ("Sorry, I", False), ("", False)])
def test_words_aside_are_told_from_sentences(said, is_nod):
    words = [Word(word, 1.0 + 0.3 * number, 1.2 + 0.3 * number) for number, word in enumerate(said.split())]
    assert scoring._is_nod([*words, Word("sentence", 5.0, 5.3)], (0.9, 2.0)) is is_nod


def test_the_agents_own_name_is_listened_for(made):
    items = [item for item in layout.find_items(made) if item.task == "synthetic_turn_taking"]
    take = runner.takes_of(items, made)[0]
    name = next(name for name in domain.NAMES if name in layout.persona(take.folder).prompt)
    meant, misheard = (
        [Word(word, index, index + 0.5) for index, word in enumerate(text.split())]
        for text in (f"My name is {name}. I hope so.", "my name is zelda i hope so")
    )
    assert scoring._agreement(take, meant, meant)["names_heard"] == 1.0
    found = scoring._agreement(take, meant, misheard)
    assert (found["names"], found["names_heard"], found["word_errors"]) == (1.0, 0.0, 1.0)


def test_old_sets_are_scored_by_todays_words():
    assert roles.wanted_words("wish", ("sorry",)) == roles._DECLINES
    assert roles.wanted_words("rudeness", ("thank you",)) == roles._POLITE
    assert roles.wanted_words("price", ("ten",)) == ("ten",)


# ---------------------------------------------------------------------------------- voices


def test_an_embedding_has_length_one_and_cares_little_for_loudness():
    torch.manual_seed(0)
    model = Ge2e().eval()
    pcm = hum("one two three four five six seven eight").pcm[:32_000]
    soft, loud = model.embed(pcm * 1e-3), model.embed(pcm * 1e-2)
    assert soft.shape == (256,) and np.linalg.norm(soft) == pytest.approx(1, abs=1e-5)
    assert np.allclose(soft, loud, atol=1e-3)
    assert model.embed(pcm[:4000]).shape == (256,)  # shorter than one stretch


def test_voices_are_told_apart_with_the_real_weights():
    encode = find_encoder()
    if encode is None:
        pytest.skip("Resemblyzer's weights are not installed: pip install --no-deps Resemblyzer==0.1.4")
    from personaplex.audio.files import read_recording

    female, male = (read_recording(f"voices/nano-{which}.wav", sample_rate_hz=16_000).pcm for which in "fm")
    halves = [encode(part) for pcm in (female, male) for part in np.array_split(pcm, 2)]
    assert halves[0] @ halves[1] > 0.8 > 0.7 > halves[0] @ halves[2]


def test_too_little_speech_tells_no_voice():
    pcm = np.ones(32_000, np.float32)
    assert speech_only(pcm, [(0.0, 0.3), (1.0, 1.4)]) is None
    assert len(speech_only(pcm, [(0.0, 0.5), (1.0, 1.4)])) == 14_400


def test_answers_are_compared_with_their_own_voice(made, tmp_path):
    """An encoder that tells the two buzzing voices by their pitch; the model answers with neither."""
    takes = answered_turns(made, tmp_path)
    for take in takes:
        take.speech.write_text(json.dumps([[0.0, 2.0]]))

    def encode(pcm):
        crossings = np.mean(np.diff(np.sign(pcm)) != 0)
        return np.array([1.0, 0.0]) if crossings * 8000 < 130 else np.array([0.0, 1.0])

    found = compare_voices(takes, encode, pairs=5)
    assert len(found.answers) == len(takes)
    assert set(found.same) == {1.0}


def test_an_answer_is_nearer_to_its_own_voice_than_to_others(made, tmp_path, monkeypatch):
    """Four prompts of four voices at right angles; every answer is in the first one's voice."""
    takes = answered_turns(made, tmp_path)
    for take in takes:
        take.speech.write_text(json.dumps([[0.0, 2.0]]))
    names = {layout.persona(take.folder).voice: layout.persona(take.folder).voice_name for take in takes}
    voices = sorted(set(names.values()))
    assert len(voices) > 1

    def recording(path):
        return np.full(4, voices.index(names[path]), np.float32)

    monkeypatch.setattr(scoring, "_spoken", recording)
    found = compare_voices(takes, lambda pcm: np.eye(len(voices))[int(pcm[0]) if len(pcm) == 4 else 0])
    own = [float(layout.persona(take.folder).voice_name == voices[0]) for take in takes]
    assert sorted(found.answers.values()) == sorted(own)
    for nearer, is_own in zip(found.nearer, own, strict=True):
        assert nearer == 1.0 if is_own else nearer < 1.0


# ---------------------------------------------------------------------------------- speakers


def test_a_sentence_loses_the_silence_around_it():
    spoken = Speaker("slt", 1.0, 1.0, hum).say("one two three")
    assert spoken.duration_sec == pytest.approx(3 * WORD_SEC + 0.12, abs=0.002)
    assert spoken.words[0].start_sec == pytest.approx(0.04) and spoken.words[-1].text == "three"


def test_voice_prompts_differ_each_time():
    rng = random.Random(0)
    first, second = voice_prompt(rng, "slt", hum), voice_prompt(rng, "slt", hum)
    assert len(first) <= 3.5 * 24_000 and not np.array_equal(first, second)
