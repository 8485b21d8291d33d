"""Downloads by name, from a server on this machine."""

import hashlib
import http.server
import threading

import pytest

from dfine_jax.errors import UserError
from dfine_jax.families.dfine.published import BACKBONES, DETECTORS, REPOSITORIES
from dfine_jax.families.family import Published, Repository
from dfine_jax.weights import hub, names

CONTENT = bytes(range(256)) * 4000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, breaks off in the middle, or fails."""

    requests: list[str] = []
    broken = False
    commit = ""

    def do_GET(self):
        self.requests.append(self.path)
        if "missing" in self.path or self.path.endswith("dfine_x_coco.pth"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        if self.commit:
            self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.broken else CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    handler = type("Own", (Handler,), {"requests": [], "broken": False, "commit": ""})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as instance:
        threading.Thread(target=instance.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{instance.server_port}"
        monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(hub, "address", lambda published: f"{address}/official/{published.file}")
        yield handler
        instance.shutdown()


def files(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())


def test_download_once_and_record(server, tmp_path):
    path = hub.fetch("dfine-l-coco", progress=False)
    assert path == tmp_path / "cache" / "dfine_l_coco.pth" and path.read_bytes() == CONTENT
    recorded = (tmp_path / "cache" / "dfine_l_coco.pth.sha256").read_text()
    assert recorded == f"{hashlib.sha256(CONTENT).hexdigest()}  dfine_l_coco.pth\n"
    assert hub.fetch("dfine-l-coco") == path
    assert server.requests == ["/official/dfine_l_coco.pth"]


def test_progress_bar(server, capsys):
    hub.fetch("dfine-l-coco", progress=True)
    shown = capsys.readouterr().err
    assert "dfine_l_coco.pth" in shown and "1.02M/1.02M" in shown


def test_interrupted_download_leaves_nothing_and_can_be_repeated(server, tmp_path):
    server.broken = True
    with pytest.raises(UserError, match="download failed.*put it at") as caught:
        hub.fetch("dfine-l-coco", progress=False)
    assert "\n" not in str(caught.value) and files(tmp_path) == []
    server.broken = False
    assert hub.fetch("dfine-l-coco", progress=False).read_bytes() == CONTENT


def test_not_found(server, tmp_path):
    with pytest.raises(UserError, match=r"dfine_x_coco.pth answers 404 \(Not Found\)"):
        hub.fetch("dfine-x-coco", progress=False)
    assert files(tmp_path) == []


def test_changed_file_is_refused(server):
    path = hub.fetch("dfine-l-coco", progress=False)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match="has changed since its download.*delete it"):
        hub.fetch("dfine-l-coco")


def test_file_put_by_hand_is_taken_and_recorded(server, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "dfine_s_obj365.pth").write_bytes(b"weights")
    assert hub.fetch("dfine-s-obj365").read_bytes() == b"weights"
    assert server.requests == [] and "dfine_s_obj365.pth.sha256" in files(tmp_path)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", ["hf:someone/cells", "ustc-community/dfine-large-coco"])
def test_both_files_of_a_huggingface_folder_are_of_one_commit(server, tmp_path, name):
    server.commit = COMMIT
    folder = hub.fetch(name, progress=False)
    repository = name.removeprefix("hf:")
    assert folder == tmp_path / "cache" / "huggingface" / repository
    first, second = f"main/{hub._HUGGINGFACE_FILES[0]}", f"{COMMIT}/{hub._HUGGINGFACE_FILES[1]}"
    assert server.requests == [f"/{repository}/resolve/{first}", f"/{repository}/resolve/{second}"]
    assert (folder / "commit.txt").read_text() == f"{COMMIT}\n"
    (folder / "model.safetensors").unlink()  # what is missing comes from the commit of what is there
    hub.fetch(name, progress=False)
    assert server.requests[2:] == [f"/{repository}/resolve/{second}"]


def test_a_server_that_names_no_commit(server):
    hub.fetch("hf:someone/cells", progress=False)
    assert [path.split("/")[4] for path in server.requests] == ["main", "main"]


def test_known_commits_and_asked_for_ones(server, tmp_path, monkeypatch):
    digest = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(REPOSITORIES, "someone/cells", Repository(COMMIT, digest))
    hub.fetch("hf:someone/cells", progress=False)
    assert {path.split("/")[4] for path in server.requests} == {COMMIT}
    folder = hub.fetch("hf:someone/cells@v1.0", progress=False)
    assert folder.name == "cells@v1.0" and server.requests[-1] == "/someone/cells/resolve/v1.0/model.safetensors"
    monkeypatch.setitem(REPOSITORIES, "someone/dots", Repository(COMMIT, "0" * 64))
    with pytest.raises(UserError, match="is not the published file"):
        hub.fetch("hf:someone/dots", progress=False)
    assert not list((tmp_path / "cache" / "huggingface" / "someone" / "dots").glob("model*"))


@pytest.mark.parametrize(
    "name",
    ["hf:../..", "hf:a/..", "hf:../a", "hf:a/.b", "hf:./a", "hf:/etc/passwd", "hf:a/b/c", "hf:a\\..\\b", "hf:a/b\0c"]
    + ["hf:a/b\n"]
    + ["hf:%2e%2e/%2e%2e", "hf:a/b..c", "hf:a/b.", "hf:a/-b", "hf:a/b@../c", "hf:a/b@", "hf:a", "hf:/"]
    + ["hf:", "hf:a/\uff0e\uff0e"]
    + ["ustc-community/..", "ustc-community/../../x", "hf:a//b", "hf:C:/b"],
)  # fmt: skip
def test_names_cannot_leave_the_cache(name):
    assert not names.is_published(name)
    with pytest.raises(UserError, match="unknown weights"):
        hub.fetch(name)


def test_names_that_the_hub_has():
    for name in (
        "hf:a/b",
        "hf:Owner_1/model-2.0_x",
        "hf:a1/b__c",
        "hf:a/b@v1.0",
        f"hf:a/b@{COMMIT}",
        "ustc-community/x",
    ):
        assert names.is_published(name), name


def test_pinned_files_are_checked_however_they_come(server, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="dfine_n_coco.pth sent is not the published file .SHA-256 .*nothing is kept"):
        hub.fetch("dfine-n-coco", progress=False)
    assert files(tmp_path) == []
    (tmp_path / "cache" / "dfine_n_coco.pth").write_bytes(CONTENT)  # put there by hand
    with pytest.raises(UserError, match="dfine_n_coco.pth is not the published file.*delete it"):
        hub.fetch("dfine-n-coco")
    known = Published("dfine_n_coco.pth", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(DETECTORS, "dfine-n-coco", known)
    assert hub.fetch("dfine-n-coco").read_bytes() == CONTENT


def test_a_published_md5_is_checked_when_the_file_comes(server, tmp_path, monkeypatch):
    right, wrong = (Published("a.pth", md5=sum) for sum in (hashlib.md5(CONTENT).hexdigest(), "0" * 32))
    monkeypatch.setattr(hub.families, "published", lambda: {"right": right, "wrong": wrong._replace(cached="b.pth")})
    with pytest.raises(UserError, match="MD5 .*, published 0000"):
        hub.fetch("wrong", progress=False)
    assert not files(tmp_path)
    assert hub.fetch("right", progress=False).name == "a.pth" and files(tmp_path) == ["a.pth", "a.pth.sha256"]


def test_digests_are_digests():
    pins = [item.sha256 for item in (*DETECTORS.values(), *BACKBONES.values(), *REPOSITORIES.values())]
    known = [pin for pin in pins if pin]
    assert len(known) == len(set(known)) == 6
    assert all(len(pin) == 64 and set(pin) <= set("0123456789abcdef") for pin in known)
    assert all(len(item.commit) == 40 for item in REPOSITORIES.values())
    assert DETECTORS["dfine-n-coco"].sha256 and BACKBONES["HGNetv2-B0"].sha256


def test_a_file_is_known_by_its_digest_or_its_name():
    pin = DETECTORS["dfine-s-coco"]
    assert pin.sha256 and hub.is_published_file("renamed.pth", pin.sha256)
    assert not hub.is_published_file(pin.file, "0" * 64)
    assert hub.is_published_file("dfine_x_coco.pth", "0" * 64) and not hub.is_published_file("mine.pth", "0" * 64)


def test_huggingface_not_found(server):
    with pytest.raises(UserError, match="404"):
        hub.fetch("hf:someone/missing", progress=False)


def test_no_connection(monkeypatch, tmp_path):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    nowhere = "http://127.0.0.1:9"  # nothing listens there
    monkeypatch.setattr(hub, "address", lambda published: f"{nowhere}/{published.file}")
    with pytest.raises(UserError, match="without a connection: fetch http://127.0.0.1:9/dfine_n_coco.pth") as caught:
        hub.fetch("dfine-n-coco", progress=False)
    assert str(tmp_path / "dfine_n_coco.pth") in str(caught.value)


def test_cache_that_cannot_be_written(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set DFINE_CACHE"):
        hub.fetch("dfine-n-coco", progress=False)


def test_names():
    assert len(DETECTORS) == 14 + 5 + 9
    assert DETECTORS["dfine-l-obj2coco"].file == "dfine_l_obj2coco_e25.pth"
    assert DETECTORS["dfine-seg-det-l-obj2coco"].url.endswith("/ArgoSA/D-FINE-seg/resolve/main/dfine_l_obj2coco.pt")
    assert names.is_published("dfine-x-obj365") and names.is_published("ustc-community/dfine-nano-coco")
    assert not names.is_published("runs/best") and not names.is_published("dfine-n-obj365")
    with pytest.raises(UserError, match="unknown weights 'dfine-z-coco'; published names: dfine-n-coco"):
        hub.fetch("dfine-z-coco")
