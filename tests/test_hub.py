"""Finding models by name, and fetching them: against a small hub on this machine that misbehaves on request."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import httpx
import pytest
from fake_hub import COMMIT, FakeHub
from huggingface_hub import constants, file_download, try_to_load_from_cache

from personaplex.config import NANO
from personaplex.errors import DownloadError, OutputError, UnknownNameError, WeightsError
from personaplex.weights import download, hub, names
from personaplex.weights.hub import Hub, resolve_model

GOLDEN = Path(__file__).parent / "golden"
REPO = "someone/golden-model"
TOKEN = "hf_right"
LARGE = "model.safetensors"


@pytest.fixture(autouse=True)
def quick_and_alone(monkeypatch):
    """Small files count as large ones, pauses are short, and nothing of this machine's account is used."""
    monkeypatch.setattr(hub, "OWN_RESUME_ABOVE_BYTES", 100_000)
    monkeypatch.setattr(hub, "DISK_RESERVE_BYTES", 0)
    monkeypatch.setattr(download, "PAUSE_SEC", 0.0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def files() -> dict[str, bytes]:
    names = ("config.json", LARGE, "tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_spm_32k_3.model")
    return {name: (GOLDEN / name).read_bytes() for name in names}


@pytest.fixture
def server(files):
    with FakeHub(REPO, files, large_bytes=100_000) as fake:
        yield fake


@pytest.fixture
def fetch(server, tmp_path):
    """Resolve a name against the server, in a cache of its own."""
    return lambda name=REPO, revision=None: resolve_model(name, revision, Hub(server.url, tmp_path / "cache"))


def parts(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.part"))


# --- names


def test_a_folder_is_taken_as_it_is():
    assert resolve_model(str(GOLDEN)).folder == GOLDEN


def test_nano_is_in_the_package(tmp_path, monkeypatch):
    (tmp_path / LARGE).touch()
    monkeypatch.setattr(names, "nano_folder", lambda: tmp_path)
    assert resolve_model(NANO).folder == tmp_path


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="holds no model"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nanoo", "did you mean nano"),
        ("../secrets/model", "there is no model"),
        ("nvidia/..", "there is no model"),
        ("nvidia/personaplex-7b-v1@../../main", "there is no model"),
        ("nvidia/personaplex-7b-v1@", "there is no model"),
        ("/no/such/folder", "there is no model"),
        ("https://example.org/model", "there is no model"),
        ("", "there is no model"),
    ],
)
def test_names_that_are_no_model(name, says, fetch, server):
    with pytest.raises(UnknownNameError, match=says):
        fetch(name)
    assert not server.requests


def test_nano_has_no_revisions(fetch):
    with pytest.raises(UnknownNameError, match="nano comes with the program and has no revision v2; leave it out"):
        fetch(NANO, "v2")


def test_two_revisions_contradict(fetch):
    with pytest.raises(UnknownNameError, match="contradict"):
        fetch(f"{REPO}@one", "two")


# --- the good way


def test_a_model_is_fetched_whole_once(fetch, server, files, tmp_path):
    source = fetch()
    assert {name: (source.folder / name).read_bytes() for name in files} == files
    assert (source.repo, source.revision) == (REPO, COMMIT)
    assert not parts(tmp_path)
    server.requests.clear()
    assert fetch().folder == source.folder
    assert all("/api/models/" in line for line in server.requests), "files in the cache were asked for again"


def test_a_disk_without_links_holds_a_model_once(fetch, server, files, tmp_path, monkeypatch):
    """There the hub's library copies what it finds among its blobs: 17 GB of weights took 34."""
    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda *_: False)
    source = fetch()
    assert {name: (source.folder / name).read_bytes() for name in files} == files
    whole = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 1000]
    assert sorted(path.stat().st_size for path in whole) == sorted(len(data) for data in files.values())
    server.requests.clear()
    assert fetch().folder == source.folder
    assert all("/api/models/" in line for line in server.requests), "files in the cache were asked for again"


@pytest.mark.parametrize("links", [True, False])
def test_a_cached_file_of_another_size_is_fetched_anew_once(fetch, server, files, monkeypatch, links):
    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda *_: links)
    (fetch().folder / LARGE).write_bytes(b"cut off")
    server.requests.clear()
    assert (fetch().folder / LARGE).read_bytes() == files[LARGE]
    assert server.sent(f"GET /cdn/{LARGE}") == [f"GET /cdn/{LARGE} bytes=0-"]


def test_the_hubs_own_cache_knows_the_files(fetch, tmp_path):
    source = fetch()
    found = try_to_load_from_cache(REPO, LARGE, cache_dir=tmp_path / "cache")
    assert isinstance(found, str)
    assert Path(found).parent == source.folder


def test_a_pinned_commit_in_the_cache_needs_no_network(fetch, server):
    fetch(f"{REPO}@{COMMIT}")
    server.requests.clear()
    assert fetch(f"{REPO}@{COMMIT}").revision == COMMIT
    assert not server.requests


def test_shards_are_fetched_by_their_index(fetch, server, files):
    server.files = {name: data for name, data in files.items() if name != LARGE}
    server.files["model.safetensors.index.json"] = (
        b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    )
    server.files |= {"model-1.safetensors": b"1" * 200_000, "model-2.safetensors": b"2", "unrelated.bin": b"3"}
    folder = fetch().folder
    assert (folder / "model-1.safetensors").stat().st_size == 200_000
    assert (folder / "model-2.safetensors").is_file()
    assert not (folder / "unrelated.bin").exists()


def test_the_token_is_for_the_hub_only(fetch, server, token):
    server.token = TOKEN
    fetch()
    assert ("resolve", f"Bearer {TOKEN}") in server.given_tokens
    assert {given for kind, given in server.given_tokens if kind == "cdn"} == {None}


# --- access


def test_no_token(fetch, server):
    server.token = TOKEN
    with pytest.raises(DownloadError, match=f"1. accept the licence on https://huggingface.co/{REPO} .*HF_TOKEN"):
        fetch()


def test_licence_not_accepted(fetch, server, token):
    server.token, server.accepted = TOKEN, False
    with pytest.raises(DownloadError, match=f"may not read .* accept the licence on https://huggingface.co/{REPO}"):
        fetch()


def test_a_token_the_hub_does_not_know(fetch, server, token):
    server.token = "hf_another"
    with pytest.raises(DownloadError, match="does not know the token in HF_TOKEN"):
        fetch()


# --- what is not there


def test_no_such_repository(fetch):
    with pytest.raises(DownloadError, match="there is no model nvidia/personaplex-7b on .*did you mean nvidia/.*-v1"):
        fetch("nvidia/personaplex-7b")


def test_no_such_revision(fetch):
    with pytest.raises(DownloadError, match="has no revision 'v9'"):
        fetch(f"{REPO}@v9")


def test_a_repository_that_is_no_model(fetch, server):
    del server.files["tokenizer_spm_32k_3.model"]
    with pytest.raises(DownloadError, match="has no tokenizer_spm_32k_3.model"):
        fetch()


# --- a bad line


def test_a_broken_line_is_taken_up_again(fetch, server, files):
    server.break_after[LARGE] = [3_000_000, 2_000_000]
    assert (fetch().folder / LARGE).read_bytes() == files[LARGE]
    assert [line.partition("bytes=")[2] for line in server.sent(f"GET /cdn/{LARGE}")] == ["0-", "3000000-", "5000000-"]


def test_an_interrupted_download_resumes_in_the_next_run(fetch, server, files, tmp_path):
    server.break_after[LARGE] = [4_000_000] + [0] * download.ATTEMPTS
    with pytest.raises(DownloadError, match=r"broke off at 4000000 of 8990296 bytes .*goes on from there"):
        fetch()
    assert [part.stat().st_size for part in parts(tmp_path)] == [4_000_000]
    server.requests.clear()
    assert (fetch().folder / LARGE).read_bytes() == files[LARGE]
    assert server.sent(f"GET /cdn/{LARGE}") == [f"GET /cdn/{LARGE} bytes=4000000-"]


def test_a_server_without_ranges_starts_anew(fetch, server, files):
    server.ranges, server.break_after = False, {LARGE: [3_000_000]}
    assert (fetch().folder / LARGE).read_bytes() == files[LARGE]


@pytest.mark.parametrize("name", [LARGE, "tokenizer_spm_32k_3.model"])
def test_a_wrong_hash_is_found_and_nothing_of_it_kept(fetch, server, files, tmp_path, name):
    hub_limit = len(files[name]) - 1
    server.large_bytes = min(server.large_bytes, hub_limit)
    server.swapped[name] = bytes(len(files[name]))
    with pytest.raises(DownloadError, match=f"{name} arrived damaged .*hash"):
        fetch()
    assert not parts(tmp_path)
    server.swapped.clear()
    assert (fetch().folder / name).read_bytes() == files[name]


def test_the_hub_is_down(fetch, server):
    server.status = 503
    with pytest.raises(DownloadError, match="status 503"):
        fetch()


def test_no_network(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DownloadError, match=r"was not reached .*check the network.*--model nano"):
            resolve_model(REPO, None, Hub(url, tmp_path / "cache"))


def test_without_network_the_cache_will_do(fetch, server, caplog):
    folder = fetch().folder
    server.status = 503
    with caplog.at_level(logging.WARNING):
        assert fetch().folder == folder
    assert "using the copy" in caplog.text


MOVED = "abcdef0123" * 4


def test_a_newer_commit_with_the_same_files_needs_no_room_and_no_transfer(fetch, server, files, monkeypatch):
    fetch()
    server.commit, server.requests[:] = MOVED, []
    monkeypatch.setattr(hub, "free_bytes", lambda _: 100_000)
    source = fetch()
    assert source.revision == MOVED and (source.folder / LARGE).read_bytes() == files[LARGE]
    assert not server.sent("/cdn/")


def test_an_update_that_breaks_off_leaves_the_model_that_was_there(fetch, server, files, monkeypatch):
    old = fetch()
    server.commit, server.files = MOVED, {**server.files, LARGE: files[LARGE] + b"more"}
    server.cdn_status = 503
    with pytest.raises(DownloadError):
        fetch()
    server.status = 503
    assert fetch() == old
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch() == old
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.status = server.cdn_status = None
    assert fetch().revision == MOVED


def test_a_cache_that_may_only_be_read_will_do(fetch, server, tmp_path, monkeypatch):
    old = fetch()
    monkeypatch.setattr(hub, "write_text", lambda *_: pytest.fail("nothing is to be written"))
    assert fetch() == old

    def refuses(path, _):
        raise OutputError(f"{path} cannot be written: Read-only file system")

    monkeypatch.setattr(hub, "write_text", refuses)
    server.commit = MOVED
    assert fetch().revision == MOVED


def test_a_branch_that_moves_meanwhile_gives_one_commit(fetch, server, monkeypatch):
    real = hub.fetch_blob

    def moves(*arguments):
        server.commit = MOVED
        real(*arguments)

    monkeypatch.setattr(hub, "fetch_blob", moves)
    source = fetch()
    assert source.revision == COMMIT and (source.folder / LARGE).is_file()


def test_what_another_download_left_does_not_count_as_ours(fetch, server, monkeypatch, tmp_path):
    blobs = tmp_path / "cache" / file_download.repo_folder_name(repo_id=REPO, repo_type="model") / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123.part").write_bytes(bytes(20_000_000))
    monkeypatch.setattr(hub, "free_bytes", lambda _: 1_000)
    with pytest.raises(DownloadError, match="more on the disk"):
        fetch()


def test_a_cache_that_cannot_be_made_is_no_matter_of_the_network(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"cannot be written \(Not a directory\): set HF_HOME"):
        resolve_model(REPO, None, Hub(server.url, tmp_path / "file" / "cache"))


def test_offline_and_not_in_the_cache(fetch, server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set and .* is not in the cache"):
        fetch()
    assert not server.requests


# --- the disk


def test_a_disk_too_small_is_found_before_the_download(fetch, server, monkeypatch):
    monkeypatch.setattr(hub, "free_bytes", lambda _: 1_000_000)
    with pytest.raises(DownloadError, match=r"needs [1-9][0-9.]* (MB|kB|bytes) more .*free some, or set HF_HOME"):
        fetch()
    assert not server.sent("/cdn/")


def test_a_full_disk(fetch, server, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "fetch_blob", full)
    with pytest.raises(DownloadError, match="the disk is full while fetching"):
        fetch()


@pytest.mark.timeout(20)
def test_a_disk_that_is_gone_is_found_before_the_download(server, monkeypatch):
    """As a drive of Windows that is not plugged in: not even its root is there."""

    def gone(_):
        raise FileNotFoundError("the system cannot find the path")

    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr("shutil.disk_usage", gone)
    listed = hub._Listed(1_000_000, None)
    asked = hub._Download(Hub(server.url, Path("/gone/hub")), REPO, "main", COMMIT, {LARGE: listed})
    with pytest.raises(DownloadError, match="0 bytes free: .*HF_HOME"):
        asked._check_disk([LARGE])


def test_a_first_request_that_fails_before_a_byte_is_made_again(fetch, server, files, monkeypatch):
    """No file is there yet then: to look at its size was an error of its own, and nothing was tried again."""
    ask, away = download.get_hf_file_metadata, [httpx.ConnectError("no route"), httpx.ReadTimeout("too slow")]

    def flaky(*args, **more):
        if away:
            raise away.pop()
        return ask(*args, **more)

    monkeypatch.setattr(download, "get_hf_file_metadata", flaky)
    assert (fetch().folder / LARGE).read_bytes() == files[LARGE]
    assert not away


def test_an_answer_that_is_too_long_is_thrown_away_and_asked_for_again(fetch, server, files, tmp_path):
    server.swapped[LARGE] = files[LARGE] + b"too much"
    with pytest.raises(DownloadError, match=r"broke off at 0 of 8990296 bytes"):
        fetch()
    assert len(server.sent(f"GET /cdn/{LARGE}")) == download.ATTEMPTS and not parts(tmp_path)
    server.swapped.clear()
    assert (fetch().folder / LARGE).read_bytes() == files[LARGE]


def test_a_refusal_where_the_bytes_are_is_not_asked_for_again(fetch, server):
    server.cdn_status = 403
    with pytest.raises(DownloadError, match="may not read"):
        fetch()
    assert len(server.sent("GET /cdn/")) == 1


def test_an_outage_where_the_bytes_are_is_waited_for(fetch, server, files):
    server.outages = 3
    assert (fetch().folder / LARGE).read_bytes() == files[LARGE]


def test_an_outage_of_the_hub_itself_is_waited_for(fetch, server, files, monkeypatch):
    """Between two tries the hub is asked again where the bytes are: it may be away just then."""
    server.break_after[LARGE] = [4_000_000]
    ask, away = download.get_hf_file_metadata, [httpx.ConnectError("no route"), httpx.ReadTimeout("too slow")]

    def flaky(*args, **more):
        if server.sent(f"GET /cdn/{LARGE}") and away:
            raise away.pop()
        return ask(*args, **more)

    monkeypatch.setattr(download, "get_hf_file_metadata", flaky)
    assert (fetch().folder / LARGE).read_bytes() == files[LARGE]
    assert not away and server.sent(f"GET /cdn/{LARGE}")[-1].endswith("bytes=4000000-")
