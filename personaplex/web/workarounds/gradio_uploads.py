"""Gradio 5.50.0: uploads.

Bugs: ``GradioMultiPartParser`` writes into the system's temporary folder and deletes its files only after a
``MultiPartException``, so an upload that breaks off, or whose field is not named ``files``, stays for good. The folder
of an upload is a hash of its content, so the same file sent by two visitors, or equal to a shipped sample, is one file.
A path that is an address is downloaded by the server.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import gradio as gr
from gradio import processing_utils, route_utils

from personaplex.web.workarounds.patch import replace

_SALT_BYTES = 16
MOST_FILES = 4
"""In one request; the limit of their size is for each, and Gradio's own 1000 would fill a disk."""

_parse = route_utils.GradioMultiPartParser.parse


class _OwnFolderUpload(route_utils.GradioUploadFile):
    """An upload whose folder nobody can guess and that it shares with no other."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.sha.update(os.urandom(_SALT_BYTES))


async def _parse_or_delete(parser: route_utils.GradioMultiPartParser) -> Any:
    parser.max_files = min(parser.max_files, MOST_FILES)
    parser.max_fields = 0  # other than files; they have no limit of their size and are kept in memory
    try:
        return await _parse(parser)
    except BaseException:
        for file in parser._files_to_close_on_error:
            file.close()
            Path(file.name).unlink(missing_ok=True)
        raise


async def _refuse(*_: Any, **__: Any) -> str:
    raise gr.Error("Send the sound itself: this server fetches no addresses.", duration=None, print_exception=False)


def receive_uploads_in(folder: Path) -> None:
    """Receive uploads in ``folder``, delete those that break off, and fetch no addresses."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    in_folder = partial(NamedTemporaryFile, dir=folder)
    replace(route_utils, NamedTemporaryFile=in_folder, GradioUploadFile=_OwnFolderUpload)
    replace(route_utils.GradioMultiPartParser, parse=_parse_or_delete)
    replace(processing_utils, async_ssrf_protected_download=_refuse)
