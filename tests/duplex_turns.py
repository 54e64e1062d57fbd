"""A server whose turns a test makes by hand, on a clock of its own."""

from fake_session import Notes

from personaplex.messages import ConversationRequest, Limits
from personaplex.serving.server import DuplexServer


def serve(clock, session, **limits):
    return DuplexServer(session, Limits(slots=session.slots, **limits), clock=clock, start=False)


def turns(server, count=12):
    for _ in range(count):
        server.turn()


def join(server, **request):
    notes = Notes()
    handle = server.open(ConversationRequest(**request), notes)
    return handle, notes


def live(server, **request):
    handle, notes = join(server, **request)
    turns(server)
    assert notes.last.is_live
    return handle, notes
