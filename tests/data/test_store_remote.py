"""Stores in object storage, against a server on this machine that speaks as much of S3 as a store needs."""

import functools
import http.server
import re
import threading

import numpy as np
import pytest

from scaling.data import store_build
from scaling.data.token_store import build_store, open_store, read_ends, read_tokens, read_windows, store_tokenizer
from scaling.errors import InputError

REFUSED = "what is not taken"


class ObjectServer(http.server.BaseHTTPRequestHandler):
    """GET, with a range or without, and PUT of objects that are kept in a dictionary."""

    protocol_version = "HTTP/1.1"

    def __init__(self, objects, *given):
        self.objects = objects
        super().__init__(*given)

    def log_message(self, *_):
        pass

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if REFUSED in self.objects and self.objects[REFUSED] in self.path:
            self.answer(403, b"<Error><Code>AccessDenied</Code></Error>", {})
        else:
            self.objects[self.path] = data
            self.answer(200, b"", {"ETag": '"1"'})

    def do_GET(self):
        data = self.objects.get(self.path)
        if data is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>", {})
        elif asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            if first >= len(data):
                self.answer(416, b"", {})
            else:
                span = f"bytes {first}-{last}/{len(data)}"
                self.answer(206, data[first : last + 1], {"ETag": '"1"', "Content-Range": span})
        else:
            self.answer(200, data, {"ETag": '"1"'})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def objects(monkeypatch, tmp_path):
    """The objects of the server, by path."""
    held = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(ObjectServer, held))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "SCALING_STORES": str(tmp_path / "stores"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store_build, "SHARD_TOKENS", 500)
    yield held
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def url(request):
    return f"s3://bucket-of-tests/{request.node.name}/store"  # of its own: connections are kept by path


@pytest.fixture
def remote(objects, source, url):
    return build_store(source, "bpe:300", 0.3, url, processes=1)


def test_a_remote_store_is_the_local_one(tmp_path, source, objects, remote, url):
    local = build_store(source, "bpe:300", 0.3, tmp_path / "store", processes=1)
    assert (remote.path, remote.content_id, remote.splits) == (url, local.content_id, local.splits)
    files = {path.name: path.read_bytes() for path in local.path.iterdir() if path.name != "store.json"}
    held = {name.rpartition("/")[2]: data for name, data in objects.items()}
    assert {name: held[name] for name in held if name != "store.json"} == files
    assert len(files) > 5
    L = 32
    for split in ("train", "validation"):
        assert np.array_equal(read_tokens(remote, split), read_tokens(local, split))
        assert np.array_equal(read_ends(remote, split), read_ends(local, split))
        window_W = np.random.default_rng(0).permutation((local.splits[split].tokens - 1) // L)
        expected = read_windows(local, split, L, window_W)
        assert np.array_equal(read_windows(remote, split, L, window_W), expected)
    assert store_tokenizer(remote).file == store_tokenizer(local).file
    assert not list((tmp_path / "stores").iterdir())


def test_a_remote_store_is_not_overwritten(source, remote, url):
    with pytest.raises(InputError, match="exists already"):
        build_store(source, "bytes", 0.3, url)


def test_a_build_that_was_refused_half_way_is_not_a_store_and_goes_on(tmp_path, source, objects, url):
    objects[REFUSED] = "validation"
    with pytest.raises(InputError, match=rf"^{url}: object storage: .*AccessDenied"):
        build_store(source, "bytes", 0.3, url, processes=1)
    assert any("train-00000" in name for name in objects)
    with pytest.raises(InputError, match="not a token store"):
        open_store(url)
    (kept,) = (tmp_path / "stores").iterdir()
    (part,) = kept.glob("part-*.npz")
    times = part.stat().st_mtime_ns
    objects[REFUSED] = "store.json"
    with pytest.raises(InputError, match="AccessDenied"):
        build_store(source, "bytes", 0.3, url, processes=1)
    assert part.stat().st_mtime_ns == times
    del objects[REFUSED]
    build_store(source, "bytes", 0.3, url, processes=1)
    open_store(url, verify=True)
    assert not list((tmp_path / "stores").iterdir())


def test_what_is_lost_or_changed_in_a_remote_store_is_found(objects, remote, url):
    name = next(name for name in objects if name.endswith("train-00001.tokens"))
    data = objects[name]
    objects[name] = bytes([data[0] ^ 1]) + data[1:]
    with pytest.raises(InputError, match="the train split does not match its checksum"):
        open_store(url, verify=True)
    objects[name] = data[:-1]
    with pytest.raises(InputError, match=r"object storage: .*range"):
        open_store(url)
    del objects[name]
    with pytest.raises(InputError, match=r"train-00001\.tokens: no such file"):
        open_store(url)


def test_no_store_at_a_url(objects, url):
    with pytest.raises(InputError, match=rf"{url}: not a token store"):
        open_store(url)
    with pytest.raises(InputError, match=r"ftp://host/x: object storage: .*unsupported URL scheme"):
        open_store("ftp://host/x")
