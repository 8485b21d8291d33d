"""Downloads by name, from a server on this machine."""

import hashlib
import http.server
import threading

import pytest

from dfine_jax import hub
from dfine_jax.errors import UserError

CONTENT = bytes(range(256)) * 4000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, breaks off in the middle, or fails."""

    requests: list[str] = []
    broken = False

    def do_GET(self):
        self.requests.append(self.path)
        if "missing" in self.path or self.path.endswith("dfine_x_coco.pth"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.broken else CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    handler = type("Own", (Handler,), {"requests": [], "broken": False})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as instance:
        threading.Thread(target=instance.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{instance.server_port}"
        monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(hub, "OFFICIAL_URL", f"{address}/official")
        yield handler
        instance.shutdown()


def files(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())


def test_download_once_and_record(server, tmp_path):
    path = hub.fetch("dfine-s-coco", progress=False)
    assert path == tmp_path / "cache" / "dfine_s_coco.pth" and path.read_bytes() == CONTENT
    recorded = (tmp_path / "cache" / "dfine_s_coco.pth.sha256").read_text()
    assert recorded == f"{hashlib.sha256(CONTENT).hexdigest()}  dfine_s_coco.pth\n"
    assert hub.fetch("dfine-s-coco") == path
    assert server.requests == ["/official/dfine_s_coco.pth"]


def test_progress_bar(server, capsys):
    hub.fetch("dfine-n-coco", progress=True)
    shown = capsys.readouterr().err
    assert "dfine_n_coco.pth" in shown and "1.02M/1.02M" in shown


def test_interrupted_download_leaves_nothing_and_can_be_repeated(server, tmp_path):
    server.broken = True
    with pytest.raises(UserError, match="download failed.*put it at") as caught:
        hub.fetch("dfine-s-coco", progress=False)
    assert "\n" not in str(caught.value) and files(tmp_path) == []
    server.broken = False
    assert hub.fetch("dfine-s-coco", progress=False).read_bytes() == CONTENT


def test_not_found(server, tmp_path):
    with pytest.raises(UserError, match=r"dfine_x_coco.pth answers 404 \(Not Found\)"):
        hub.fetch("dfine-x-coco", progress=False)
    assert files(tmp_path) == []


def test_changed_file_is_refused(server):
    path = hub.fetch("dfine-s-coco", progress=False)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match="has changed since its download.*delete it"):
        hub.fetch("dfine-s-coco")


def test_file_put_by_hand_is_taken_and_recorded(server, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "dfine_m_coco.pth").write_bytes(b"weights")
    assert hub.fetch("dfine-m-coco").read_bytes() == b"weights"
    assert server.requests == [] and "dfine_m_coco.pth.sha256" in files(tmp_path)


@pytest.mark.parametrize("name", ["hf:someone/cells", "ustc-community/dfine-small-coco"])
def test_huggingface_folder(server, tmp_path, name):
    folder = hub.fetch(name, progress=False)
    repository = name.removeprefix("hf:")
    assert folder == tmp_path / "cache" / "huggingface" / repository
    assert server.requests == [f"/{repository}/resolve/main/{file}" for file in ("config.json", "model.safetensors")]


def test_huggingface_not_found(server):
    with pytest.raises(UserError, match="404"):
        hub.fetch("hf:someone/missing", progress=False)


def test_no_connection(monkeypatch, tmp_path):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(hub, "OFFICIAL_URL", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError, match="without a connection: fetch http://127.0.0.1:9/dfine_n_coco.pth") as caught:
        hub.fetch("dfine-n-coco", progress=False)
    assert str(tmp_path / "dfine_n_coco.pth") in str(caught.value)


def test_cache_that_cannot_be_written(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set DFINE_CACHE"):
        hub.fetch("dfine-n-coco", progress=False)


def test_names():
    assert len(hub.OFFICIAL) == 14
    assert hub.OFFICIAL["dfine-l-obj2coco"] == "dfine_l_obj2coco_e25.pth"
    assert hub.is_published("dfine-x-obj365") and hub.is_published("ustc-community/dfine-nano-coco")
    assert not hub.is_published("runs/best") and not hub.is_published("dfine-n-obj365")
    with pytest.raises(UserError, match="unknown weights 'dfine-z-coco'; published names: dfine-n-coco"):
        hub.fetch("dfine-z-coco")


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("DFINE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub.cache_dir() == tmp_path / "dfine_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hub.cache_dir().name in ("dfine_jax", "cache")
