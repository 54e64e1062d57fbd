"""The page's "Tell it now": when it can be pressed, whom it reaches, and what the visitor is told."""

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.context import LocalContext
from handler_call import Call

from personaplex.errors import PromptError
from personaplex.messages import ConversationState, EndReason, Phase
from personaplex.serving.host import ModelHost
from personaplex.settings import Settings
from personaplex.web import tell_box
from personaplex.web.page import build_page
from personaplex.web.talk_tab import live_updates
from personaplex.web.tell_box import tell
from personaplex.web.updates import PageUpdate, Wiring

POOL = "The pool is closed today."


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> gr.Blocks:
    return build_page(ModelHost(Settings(model="nano")), tmp_path_factory.mktemp("run")).blocks


def of(page, elem_id):
    return next(block for block in page.blocks.values() if getattr(block, "elem_id", None) == elem_id)


def called(page, name):
    return [found for found in page.fns.values() if found.fn is not None and found.fn.__name__ == name]


def wired(outcome=None):
    """A wiring with Ada's conversation, and what it was told; ``outcome``: an error, a number, or None for neither."""
    told = []

    def tell(text):
        told.append(text)
        future = Future()
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        elif outcome is not None:
            future.set_result(outcome)
        return future

    wiring = Wiring(lambda: None, lambda: None, lambda values: None, 0)
    wiring.handles["ada"] = SimpleNamespace(tell=tell)
    return wiring, told


def test_the_box_and_its_button_are_off_until_there_is_a_conversation(page):
    box, button = of(page, "tell"), of(page, "tell-now")
    assert not box.interactive and not button.interactive and button.value == "Tell it now"
    shown = [[output.elem_id for output in found.outputs] for found in page.fns.values()]
    assert ["state", "transcript", "meter", "tell", "tell-now"] in shown
    for phase, live in ((Phase.PREPARING, False), (Phase.LISTENING, True), (Phase.TALKING, True), (Phase.ENDED, False)):
        reason = EndReason.STOPPED if phase is Phase.ENDED else None
        updates = live_updates(PageUpdate(ConversationState(phase, reason=reason), "…"))
        assert len(updates) == 5
        assert [update["interactive"] for update in updates[-2:]] == [live, live]
        assert not any("value" in update for update in updates[-2:]), "what is typed stays"
    (show_record,) = called(page, "show_record")
    assert [output.elem_id for output in show_record.outputs[-3:]] == ["tell", "tell-now", "told"]


def test_button_and_enter_key_do_the_same(page):
    (now,) = called(page, "tell_now")
    assert {(page.blocks[target].elem_id, name) for target, name in now.targets} == {
        ("tell-now", "click"),
        ("tell", "submit"),
    }
    assert [each.elem_id for each in (*now.inputs, *now.outputs)] == ["tell", "tell", "told"] and now.api_name is False


def test_what_was_told_empties_the_box_and_says_how_much_is_left():
    wiring, told = wired(outcome=163)
    text, said = asyncio.run(tell(wiring, "ada", POOL))
    assert told == [POOL] and text == "" and "Told. 163 of 200 tokens are left" in said


def test_a_refusal_is_a_sentence_and_the_text_stays():
    wiring, _ = wired(
        PromptError("the text to be told has 214 tokens with its tags; 200 are allowed: <b>shorten</b> it")
    )
    text, said = asyncio.run(tell(wiring, "ada", POOL))
    assert text == gr.skip() and "Not told: the text to be told has 214 tokens" in said and "<b>" not in said


@pytest.mark.parametrize(
    ("visitor", "text", "outcome", "words"),
    [
        ("bob", POOL, 163, "Press Start first"),
        ("", POOL, 163, "Press Start first"),
        ("ada", 7, 163, "text is 7; a text is needed"),
        ("ada", POOL, RuntimeError("CUDA error"), "stopped working"),
        ("ada", POOL, None, "did not answer in time"),
    ],
)
def test_whatever_goes_wrong_has_a_sentence(monkeypatch, visitor, text, outcome, words):
    monkeypatch.setattr(tell_box, "TOLD_WITHIN_SEC", 0.05)
    wiring, told = wired(outcome)
    kept, said = asyncio.run(tell(wiring, visitor, text))
    assert kept == gr.skip() and words in said and "CUDA" not in said
    assert bool(told) is (visitor == "ada" and text == POOL)


def test_a_visitor_reaches_their_own_conversation_while_it_lasts():
    async def scene():
        LocalContext.request.set(SimpleNamespace(session_hash="ada"))
        call = Call()
        assert call.wiring.handles == {}
        await call.live()
        assert call.wiring.handles == {"ada": call.server.handle}
        call.server.tell(ConversationState(Phase.ENDED, reason=EndReason.TIME_LIMIT, message="Over."))
        await call.until_close()
        assert call.wiring.handles == {}
        await call.handler.shutdown()

    asyncio.run(scene())


def test_whoever_pressed_start_again_keeps_the_new_conversation():
    async def scene():
        LocalContext.request.set(SimpleNamespace(session_hash="ada"))
        first = await Call().live()
        newer = SimpleNamespace(tell=None)
        first.wiring.handles["ada"] = newer
        await first.handler.shutdown()
        assert first.wiring.handles == {"ada": newer}

    asyncio.run(scene())
