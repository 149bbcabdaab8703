"""Published weight files: fetched, resumed, checked, refused, over a loopback server only."""

import errno
import hashlib
import http.server
import os
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

import mdmt
from mdmt import cli
from mdmt.errors import BadInput, NoSpace
from mdmt.weights import catalogue, fetch
from mdmt.weights.fit import fits

CONTENT = np.random.default_rng(0).bytes(300_000)
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
SIGNAL_WAIT = 60  # seconds


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at every address; `plan` says how, one entry per request, then "range".

    "range": honours Range. "plain": does not. ("cut", n): n bytes of what was asked for, then the
    connection ends. ("status", code). ("redirect", url). "stall": sends half, then nothing until
    `release` is set. ("claims", range): 206 with this Content-Range. "endless": no length is given.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, content=CONTENT):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.plan, self.asked = content, [], []
        self.release, self.stalled = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # clients that go away are what is tested

    def stop(self):
        self.release.set()
        self.shutdown()
        self.server_close()
        self.thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        kind, *rest = server.plan.pop(0) if server.plan else ("range",)
        asked = self.headers.get("Range")
        server.asked.append((self.path, asked))
        if kind == "status":
            self.send_error(rest[0])
            return
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", rest[0])
            self.end_headers()
            return
        start = int(asked[len("bytes=") : -1]) if asked and kind != "plain" else 0
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        self.send_body(kind, rest, start, bool(asked) and kind != "plain")

    def send_body(self, kind, rest, start, partial):
        size = len(self.server.content)
        body = self.server.content[start:]
        self.send_response(206 if partial else 200)
        if partial:
            span = rest[0] if kind == "claims" else f"bytes {start}-{size - 1}/{size}"
            self.send_header("Content-Range", span)
        if kind != "endless":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind == "cut":
            body = body[: rest[0]]
        if kind == "stall":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.release.wait(SIGNAL_WAIT)
            body = body[len(body) // 2 :]
        self.wfile.write(body)


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """An empty folder, no proxy of the machine's, no waiting."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("MDMT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(fetch, "WAIT", 0.0)


@pytest.fixture
def server():
    one = Server()
    yield one
    one.stop()


def publish(monkeypatch, url, backbone="resnet18"):
    source = catalogue.Source(backbone, url)
    monkeypatch.setitem(catalogue.SOURCES, backbone, source)
    return source


@pytest.fixture
def folder(server, monkeypatch, tmp_path):
    """The weights folder; what is published for resnet18 is the server's content."""
    publish(monkeypatch, f"{server.url}/{NAME}")
    return tmp_path / "weights"


def refused(kind=fetch.FetchFailed):
    with pytest.raises(kind) as caught:
        fetch.obtain("resnet18")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder):
    return sorted(p.name for p in folder.iterdir())


# What is published --------------------------------------------------------------------------------


def test_every_backbone_has_a_source():
    assert len(catalogue.SOURCES) == 18
    assert set(mdmt.backbones()) <= set(catalogue.SOURCES)
    for name, source in catalogue.SOURCES.items():
        assert source.backbone == name
        assert source.url.startswith("https://")
        assert len(source.digits) >= 8
        assert set(source.digits) <= set("0123456789abcdef")
    assert len({source.file for source in catalogue.SOURCES.values()}) == 18


@pytest.mark.oracle
def test_sources_are_those_of_torchvision_and_timm():
    from tests import oracle

    models, timm = oracle.need("torchvision").models, oracle.need("timm")
    for name, source in catalogue.SOURCES.items():
        if name.startswith("efficientnet"):
            assert timm.get_pretrained_cfg(name).url == source.url
        else:
            entry = models.get_model_weights(name).IMAGENET1K_V1
            assert entry.url == source.url
            assert entry.meta["_file_size"] == source.mebibytes


def test_the_folder_is_the_users(monkeypatch, tmp_path):
    assert fetch.weights_folder() == tmp_path / "weights"
    monkeypatch.delenv("MDMT_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(fetch.location("resnet18")) == "/somewhere/mdmt/weights/resnet18-f37072fd.pth"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(fetch.weights_folder()) == "/home/me/.cache/mdmt/weights"


# Fetching -----------------------------------------------------------------------------------------


def test_fetches_once(server, folder):
    path = fetch.obtain("resnet18")
    assert path == folder / NAME
    assert path.read_bytes() == CONTENT
    assert files(folder) == [NAME]
    assert fetch.obtain("resnet18") == path
    assert server.asked == [(f"/{NAME}", None)]


def test_goes_on_after_a_broken_connection(server, folder):
    server.plan = [("cut", 100_000), ("cut", 50_000)]
    assert fetch.obtain("resnet18").read_bytes() == CONTENT
    assert [r for _, r in server.asked] == [None, "bytes=100000-", "bytes=150000-"]


def test_goes_on_with_what_an_earlier_process_left(server, folder):
    folder.mkdir()
    (folder / f"{NAME}.part").write_bytes(CONTENT[:1234])
    assert fetch.obtain("resnet18").read_bytes() == CONTENT
    assert [r for _, r in server.asked] == ["bytes=1234-"]
    assert files(folder) == [NAME]


def test_a_part_that_is_complete_is_only_checked(server, folder):
    folder.mkdir()
    (folder / f"{NAME}.part").write_bytes(CONTENT)
    assert fetch.obtain("resnet18").read_bytes() == CONTENT
    assert [r for _, r in server.asked] == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("left", [CONTENT + b"more", b"other" * 1000], ids=["longer", "other"])
def test_a_part_that_does_not_belong_is_fetched_anew(server, folder, left):
    folder.mkdir()
    (folder / f"{NAME}.part").write_bytes(left)
    assert fetch.obtain("resnet18").read_bytes() == CONTENT
    assert [r for _, r in server.asked] == [f"bytes={len(left)}-", None]


def test_begins_anew_where_the_server_knows_no_range(server, folder):
    server.plan = [("cut", 100_000), ("plain",)]
    assert fetch.obtain("resnet18").read_bytes() == CONTENT
    assert [r for _, r in server.asked] == [None, "bytes=100000-"]


def test_begins_anew_when_another_piece_is_sent(server, folder):
    server.plan = [("cut", 100_000), ("claims", f"bytes 0-9/{len(CONTENT)}")]
    assert fetch.obtain("resnet18").read_bytes() == CONTENT
    assert [r for _, r in server.asked] == [None, "bytes=100000-", None]


def test_a_length_is_not_needed(server, folder):
    server.plan = [("endless",)]
    assert fetch.obtain("resnet18").read_bytes() == CONTENT


def test_follows_redirects_and_goes_on_behind_them(server, folder):
    server.plan = [("redirect", "/else"), ("cut", 7), ("redirect", f"{server.url}/else")]
    assert fetch.obtain("resnet18").read_bytes() == CONTENT
    assert server.asked == [
        (f"/{NAME}", None), ("/else", None), (f"/{NAME}", "bytes=7-"), ("/else", "bytes=7-"),
    ]  # fmt: skip


def test_an_overloaded_server_is_asked_again(server, folder):
    server.plan = [("status", 503), ("status", 429)]
    assert fetch.obtain("resnet18").read_bytes() == CONTENT


def test_a_damaged_file_is_replaced(server, folder, capsys):
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT[:-1])
    assert cli.main(["weights", "list"]) == 0
    assert "damaged" in capsys.readouterr().out
    assert fetch.obtain("resnet18").read_bytes() == CONTENT


def test_a_file_put_in_by_hand_is_used_without_a_network(server, folder):
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT)
    folder.chmod(0o555)
    try:
        assert fetch.obtain("resnet18") == folder / NAME
    finally:
        folder.chmod(0o755)
    assert server.asked == []


def test_the_proxy_variables_count(server, monkeypatch, tmp_path):
    publish(monkeypatch, f"http://weights.invalid/{NAME}")
    monkeypatch.setenv("http_proxy", server.url)
    assert fetch.obtain("resnet18").read_bytes() == CONTENT
    assert server.asked == [(f"http://weights.invalid/{NAME}", None)]


def test_no_proxy_counts(server, folder, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch.obtain("resnet18").read_bytes() == CONTENT


# What cannot be had -------------------------------------------------------------------------------


def test_a_wrong_hash_is_refused_and_removed(server, folder):
    server.content = CONTENT[::-1]
    said = refused()
    got = hashlib.sha256(server.content).hexdigest()[:8]
    assert f"begins with {got}" in said and NAME[4:12] in said and "removed" in said
    assert files(folder) == []
    assert len(server.asked) == 1


def test_404_is_told_at_once(server, folder):
    server.plan = [("status", 404)]
    said = refused()
    assert "404" in said and f"{server.url}/{NAME}" in said and str(folder) in said
    assert files(folder) == []
    assert len(server.asked) == 1


@pytest.mark.parametrize("code, words", [(403, "403"), (407, "https_proxy")])
def test_other_refusals_are_told_at_once(server, folder, code, words):
    server.plan = [("status", code)]
    assert words in refused()
    assert len(server.asked) == 1


def test_gives_up_after_several_connections_that_bring_nothing(server, folder):
    server.plan = [("cut", 5000)] + [("status", 500)] * 99
    said = refused()
    assert "500" in said and f"{fetch.ATTEMPTS} times" in said
    assert len(server.asked) == 1 + fetch.ATTEMPTS
    assert (folder / f"{NAME}.part").stat().st_size == 5000


def test_gives_up_on_a_server_that_always_breaks_and_never_goes_on(server, folder, monkeypatch):
    real = Handler.send_body

    def shorter(self, kind, rest, start, partial):
        real(self, "cut", [1000 if len(self.server.asked) % 2 else 500], start, partial)

    monkeypatch.setattr(Handler, "send_body", shorter)
    server.plan = [("plain",)] * 99
    refused()
    assert len(server.asked) <= 2 * fetch.ATTEMPTS


def test_a_silent_server_is_left(server, folder, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", 2.0)
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    server.plan = [("stall",), ("stall",)]
    folder.mkdir()
    with open(folder / f"{NAME}.part", "wb") as part:
        part.write(CONTENT[:-2])
    # the first connection brings one byte, the second the last one's half: none
    said = refused()
    assert "no answer in time" in said
    assert [r for _, r in server.asked] == [f"bytes={len(CONTENT) - n}-" for n in (2, 1)]


def test_a_timeout_is_resumed(server, folder, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", 2.0)
    server.plan = [("stall",)]
    assert fetch.obtain("resnet18").read_bytes() == CONTENT
    assert [r for _, r in server.asked] == [None, f"bytes={len(CONTENT) // 2}-"]


def test_offline_names_the_address_and_the_folder(monkeypatch, tmp_path):
    closed = Server()
    closed.stop()
    url = f"{closed.url}/{NAME}"
    publish(monkeypatch, url)
    said = refused()
    assert url in said and str(tmp_path / "weights") in said and NAME in said
    assert "connection refused" in said
    assert files(tmp_path / "weights") == []
    (tmp_path / "weights" / NAME).write_bytes(b"half")
    assert "in place of the damaged one" in refused()
    assert (tmp_path / "weights" / NAME).read_bytes() == b"half"


def test_an_unknown_host_is_offline(monkeypatch, tmp_path):
    publish(monkeypatch, f"http://weights.invalid/{NAME}")
    assert f"http://weights.invalid/{NAME}: cannot be fetched" in refused()


def test_a_certificate_that_cannot_be_verified(server, folder, monkeypatch):
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_message = "self-signed certificate in certificate chain"

    class Opener:
        def open(self, request, timeout):
            raise urllib.error.URLError(error)

    monkeypatch.setattr(fetch, "_opener", Opener)
    said = refused()
    assert "self-signed" in said and "SSL_CERT_FILE" in said


def test_https_is_never_left():
    handler = fetch._Redirects()
    request = urllib.request.Request("https://a.example/x")
    assert handler.redirect_request(request, None, 302, "", {}, "https://b.example/y")
    for worse in ("http://b.example/y", "ftp://b.example/y"):
        with pytest.raises(fetch.FetchFailed, match="not https"):
            handler.redirect_request(request, None, 302, "", {}, worse)


def test_files_of_this_machine_are_not_addresses(monkeypatch, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT)
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    publish(monkeypatch, (tmp_path / NAME).as_uri())
    assert "unknown url type" in refused()


def test_a_disk_that_becomes_full(server, folder, monkeypatch):
    def full(file, chunk):
        file.write(chunk[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetch, "_write", full)
    assert "the disk is full" in refused(NoSpace)
    assert files(folder) == []


def test_a_disk_with_too_little_room(server, folder, monkeypatch):
    usage = fetch.shutil.disk_usage(".")._replace(free=1 << 17)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
    said = refused(NoSpace)
    assert "needs 0.3 MiB and 0.1 MiB are free" in said and str(folder) in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(server, folder):
    folder.mkdir()
    folder.chmod(0o555)
    try:
        assert "permission denied" in refused(NoSpace)
    finally:
        folder.chmod(0o755)


def test_a_file_where_the_folder_should_be(server, folder):
    folder.write_bytes(b"")
    assert str(folder) in refused(NoSpace)


# Two at once --------------------------------------------------------------------------------------

CHILD = """
import sys
from mdmt.weights import catalogue, fetch
catalogue.SOURCES["resnet18"] = catalogue.Source("resnet18", sys.argv[1])
print(fetch.obtain("resnet18"))
"""


def child(server):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, f"{server.url}/{NAME}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_fetch_a_file_once(server, folder):
    server.plan = [("stall",)]
    first = child(server)
    assert server.stalled.wait(SIGNAL_WAIT)
    second = child(server)
    assert "waiting for another process" in second.stderr.readline()
    server.release.set()
    for process in (first, second):
        out, err = process.communicate(timeout=SIGNAL_WAIT)
        assert process.returncode == 0, err
        assert out.strip() == str(folder / NAME)
    assert len(server.asked) == 1
    assert files(folder) == [NAME]


def test_a_killed_process_leaves_its_part_to_the_next(server, folder):
    server.plan = [("stall",)]
    first = child(server)
    assert server.stalled.wait(SIGNAL_WAIT)
    part = folder / f"{NAME}.part"
    while part.stat().st_size < len(CONTENT) // 2:
        assert first.poll() is None
    second = child(server)
    assert "waiting for another process" in second.stderr.readline()
    first.kill()
    first.communicate()
    out, err = second.communicate(timeout=SIGNAL_WAIT)
    assert second.returncode == 0, err
    assert [r for _, r in server.asked] == [None, f"bytes={len(CONTENT) // 2}-"]
    assert (folder / NAME).read_bytes() == CONTENT


def test_a_process_that_does_not_go_on_is_named(server, folder, monkeypatch):
    import fcntl

    monkeypatch.setattr(fetch, "STALLED", 0.2)
    folder.mkdir()
    with open(folder / f"{NAME}.part", "wb") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        assert "another process holds it" in refused()


# Where they are used ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A weight file for resnet18 as published: with a classifier, without counters of batches."""
    from mdmt import _core

    state = mdmt.Model("resnet18", image_size=32, seed=9).state_dict()
    state = {k: v for k, v in state.items() if not k.startswith("heads.") and v.ndim}
    state["fc.weight"] = np.zeros((1000, 512), np.float32)
    path = tmp_path_factory.mktemp("published") / "w.safetensors"
    _core.write_safetensors(str(path), state)
    named = path.with_name(f"resnet18-{fetch.digest(path)[:8]}.safetensors")
    return path.rename(named)


@pytest.fixture
def imagenet(pretrained, server, monkeypatch):
    server.content = pretrained.read_bytes()
    return publish(monkeypatch, f"{server.url}/{pretrained.name}")


def test_a_model_starts_from_them(pretrained, imagenet, server):
    model = mdmt.Model("resnet18", image_size=32, weights="imagenet")
    wanted, got = mdmt.load_weights(pretrained), model.state_dict()
    for key, value in wanted.items():
        if key != "fc.weight":
            np.testing.assert_array_equal(got[key], value)
    assert got["bn1.num_batches_tracked"] == 0
    assert len(server.asked) == 1


def test_a_model_says_what_is_wrong(imagenet, server):
    server.plan = [("status", 404)]
    with pytest.raises(ValueError, match="404"):
        mdmt.Model("resnet18", image_size=32, weights="imagenet")
    with pytest.raises(ValueError, match=r"conv1\.weight has the shape"):
        mdmt.Model("resnet18", image_size=32, channels=1, weights="imagenet")


def test_a_configuration_starts_from_them(pretrained, imagenet, server):
    from mdmt import experiments
    from mdmt.errors import BadConfig

    server.plan = [("status", 404)]
    values = {"weights": "imagenet", "backbones": ["resnet18"]}
    with pytest.raises(BadConfig, match=r"weights: .*404"):
        experiments.weights_source(values, "resnet18")
    found = experiments.weights_source(values, "resnet18")
    by_path = experiments.weights_source(values | {"weights": str(pretrained)}, "resnet18")
    assert found == {**by_path, "path": str(fetch.location("resnet18").resolve())}


def test_commands(pretrained, imagenet, server, capsys, tmp_path):
    assert cli.main(["weights", "where"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "weights")
    assert cli.main(["weights", "fetch", "resnet81"]) == 2
    assert "did you mean 'resnet18'" in capsys.readouterr().err
    part = tmp_path / "weights" / f"{imagenet.file}.part"
    part.parent.mkdir()
    part.write_bytes(server.content[: 1 << 20])
    assert cli.main(["weights", "list"]) == 0
    assert "begun (1.0 MiB)" in capsys.readouterr().out
    assert cli.main(["weights", "fetch", "resnet18"]) == 0
    said = capsys.readouterr()
    assert str(tmp_path / "weights" / imagenet.file) in said.out
    assert cli.main(["weights", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 19
    assert [line.split()[0] for line in listed if "present" in line] == ["resnet18"]
    assert cli.main(["weights", "list", "--urls"]) == 0
    assert imagenet.url in capsys.readouterr().out.splitlines()


def test_check_names_the_backbone(pretrained, imagenet, capsys):
    assert cli.main(["weights", "check", str(pretrained)]) == 0
    said = capsys.readouterr().out
    assert "published for resnet18" in said
    assert "fits resnet18 (without fc)" in said
    assert "resnet34" not in said


def test_check_names_what_does_not_fit(pretrained, tmp_path, capsys):
    from mdmt import _core

    state = mdmt.load_weights(pretrained)
    path = tmp_path / "grey.safetensors"
    state["conv1.weight"] = state["conv1.weight"][:, :1].copy()
    del state["bn1.weight"]
    _core.write_safetensors(str(path), state)
    assert cli.main(["weights", "check", str(path)]) == 2
    said = capsys.readouterr()
    assert "nearest is resnet18" in said.out
    assert "conv1.weight is (64, 1, 7, 7) in the file and (64, 3, 7, 7) in resnet18" in said.out
    assert "not in the file: bn1.weight" in said.out
    assert len(said.err.strip().splitlines()) == 1


def test_check_refuses_what_is_no_weights(tmp_path, capsys):
    from mdmt import _core

    state = {"conv1.weight": np.full((64, 3, 7, 7), np.inf, np.float32)}
    _core.write_safetensors(str(tmp_path / "w.safetensors"), state)
    (tmp_path / "w.pth").write_bytes(b"PK\x03\x04nothing")
    cases = {
        "w.safetensors": "conv1.weight holds NaN or infinity",
        "w.pth": "not a whole .pth file",
        "none.pth": "there is no weight file",
    }
    for name, words in cases.items():
        assert cli.main(["weights", "check", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert words in said and len(said.strip().splitlines()) == 1


def test_every_backbone_fits_itself_and_its_likes_only():
    from mdmt.weights.fit import entries

    known = {name: entries(name) for name in mdmt.backbones()}
    shapes = {name: {k: s for k, _, s in rows} for name, rows in known.items()}
    for name, rows in known.items():
        state = {k: np.broadcast_to(np.float32(0), s) for k, _, s in rows}
        whole = {f.backbone for f in fits(state) if f.whole}
        assert whole == {other for other in known if shapes[other] == shapes[name]}


def test_weights_of_a_larger_net_of_the_family_are_refused(tmp_path, capsys):
    from mdmt import _core
    from mdmt.weights.fit import entries

    state = {k: np.zeros(s, np.float32) for k, role, s in entries("resnet18") if role != "counter"}
    state["layer4.2.conv1.weight"] = np.zeros((512, 512, 3, 3), np.float32)
    path = tmp_path / "w.safetensors"
    _core.write_safetensors(str(path), state)
    assert cli.main(["weights", "check", str(path)]) == 2
    assert "which has no layer4.2.conv1.weight" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"has layer4\.2\.conv1\.weight: not weights of resnet18"):
        mdmt.Model("resnet18", image_size=32, weights=str(path))


def test_weights_of_another_kind_of_net_fit_nothing():
    one = fits({"embedding": np.zeros(3, np.float32)})[0]
    assert not one.whole and not one.agreeing and one.others == ["embedding"]
    with pytest.raises(BadInput):
        catalogue.source("vgg16")
