"""nano's recipe as one command: what runs, in which order, and how it goes on."""

import importlib
import re
import sys

import pytest

from training.nano import Recipe, Step, main, run, steps


@pytest.fixture
def recipe(tmp_path):
    return Recipe(tmp_path / "a folder", 60.0, "cpu", 2, 0.1, 0.2, 5, None)


@pytest.mark.parametrize("of_people", [False, True])
def test_every_program_knows_its_options(tmp_path, capsys, monkeypatch, of_people):
    material = (tmp_path / "people", 30.0, "neural", 60.0) if of_people else ()
    for step in steps(Recipe(tmp_path, 60.0, "cuda", 2, 0.1, 0.2, 5, tmp_path / "published", *material)):
        module = importlib.import_module(step.words[0])
        monkeypatch.setattr(sys, "argv", [step.words[0], "--help"])
        with pytest.raises(SystemExit):
            module.main()
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert {word for word in step.words if word.startswith("--")} <= known, step.name


def test_what_one_step_makes_the_next_ones_read(recipe):
    made: set[str] = {str(recipe.out)}
    for step in steps(recipe):
        words = step.words
        given = {words[i + 1] for i, word in enumerate(words) if word in ("--speech", "--codec", "--lm", "--model")}
        assert given <= made, step.name
        made |= {words[i + 1] for i, word in enumerate(words) if word in ("--out", "--packed")}
        if step.name == "codec-export":
            made.add(words[-1])


def test_people_are_learned_from_where_they_are_at_hand(tmp_path):
    made = {
        step.name: step.words for step in steps(Recipe(tmp_path, 60.0, "cpu", 2, 2.0, 0.2, 5, None, tmp_path, 30.0))
    }
    assert list(made)[:3] == ["kokoro", "codec-speech", "codec"]
    assert made["codec-speech"][0] == "training.codec.material" and "--people" in made["codec-speech"]
    assert "--recogniser" in made["codec"] and made["codec-judge"][0] == "training.codec.judge"
    without = [step.name for step in steps(Recipe(tmp_path, 60.0, "cpu", 2, 2.0, 0.2, 5, None, tmp_path))]
    assert "kokoro" not in without


def test_the_language_model_learns_from_people_and_neural_voices(tmp_path):
    recipe = Recipe(tmp_path, 60.0, "cpu", 2, 2.0, 0.2, 5, None, tmp_path / "people", 30.0, "neural", 170.0)
    made = {step.name: step.words for step in steps(recipe)}
    order = list(made)
    assert order[order.index("speech") :] == [
        "speech", "people-speech", "encode", "lm", "lm-export", "judge", "voices", "people-judge",
    ]  # fmt: skip
    assert made["speech"][-6:] == ("--cast", "neural", "--user-hours", "0.2", "--kokoro-minutes", "170")
    assert made["people-judge"][-4:] == ("nano-f", "nano-alto", "nano-m", "nano-british")
    assert "--names" in made["people-judge"]


def test_it_stops_at_what_fails_and_goes_on_from_there(recipe):
    ran: list[str] = []

    def fake(step: Step, logs):
        ran.append(step.name)
        (logs / f"{step.name}.log").write_text("out of memory\n")
        return int(step.name == "encode" and ran.count("encode") == 1)

    with pytest.raises(SystemExit, match="out of memory\nencode ended with exit code 1"):
        run(recipe, fake)
    assert ran[-1] == "encode"
    run(recipe, fake)
    names = [step.name for step in steps(recipe)]
    assert ran == names[: names.index("encode") + 1] + names[names.index("encode") :]
    run(recipe, fake)
    assert len(ran) == len(names) + 1, "what is done is not done again"


def test_a_dry_run_only_tells(tmp_path, capsys):
    main(["--out", str(tmp_path / "out"), "--start-from", "personaplex/nano", "--dry-run"])
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 9 and "--start-from personaplex/nano" in told[1]
    assert not (tmp_path / "out").exists()
