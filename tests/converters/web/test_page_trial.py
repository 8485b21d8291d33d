"""The folder's page in a real browser, with a stand-in for ONNX Runtime Web that gives known outputs.

Everything else is what visitors load: page, engine, worker, masks and drawing. A picture is dropped, a video and the
camera are played, and what the page shows, hides and saves is told to the test.
"""

from __future__ import annotations

import base64
import json
import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "tests"))
from videos import write_video

from dfine_jax.converters.web import browser, folder
from dfine_jax.converters.web.runtime import FILES
from dfine_jax.data.picture.object_masks import MapMasks
from dfine_jax.ops.postprocess import AnswerRules
from dfine_jax.serving.page_files import description

PROGRAM = browser.find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium, Chrome or Edge")
SIZE_PX = (320, 256)
NAMES = ("red", "white", "blue")
SCORES, LABELS = (0.95, 0.8, 0.6, 0.3, 0.02), (0, 1, 0, 2, 1)
BOXES = ((10.0, 20.0, 120.5, 140.0), (-6.0, 100.0, 90.0, 250.0), (200.0, 8.0, 330.0, 90.0), (60.0, 60.0, 260.0, 200.0),
         (5.0, 5.0, 9.0, 9.0))  # fmt: skip
RUNTIME = """
export const env = { wasm: {} };
export class Tensor {
  constructor(type, data, dims) {
    if (data.length !== dims.reduce((a, b) => a * b)) throw new Error("data and dims differ");
    Object.assign(this, { type, data, dims });
  }
}
const KINDS = { float32: Float32Array, int64: BigInt64Array };
export const InferenceSession = {
  async create(bytes, { executionProviders }) {
    if (new TextDecoder().decode(bytes) !== "a graph") throw new Error("not the graph of the folder");
    if (executionProviders[0] !== "wasm") throw new Error("not the backend of the address");
    const known = await (await fetch("/__check__/outputs.json")).json();
    return {
      async run({ images }) {
        if (images.type !== "uint8" || images.dims[3] !== 4) throw new Error("no bytes of a picture");
        new BroadcastChannel("runs").postMessage("one");
        const outputs = {};
        for (const [name, { type, dims, base64 }] of Object.entries(known)) {
          const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
          outputs[name] = new Tensor(type, new KINDS[type](bytes.buffer), dims);
        }
        return outputs;
      },
      async release() {},
    };
  },
};
"""
TRIAL = """
const post = (name, body) => fetch(`/__check__/${name}`, { method: "POST", body });
const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));
const frame = document.getElementById("frame");
const inside = (id) => frame.contentDocument?.getElementById(id);
const trouble = () => inside("problem") && !inside("problem").hidden && inside("problem").textContent;
const until = async (what, reached) => {
  for (let i = 0; !reached(); i++) {
    if (trouble()) throw new Error(`${what}: the page says ${trouble()}`);
    if (i > 900) throw new Error(`${what} did not happen`);
    await sleep(30);
  }
};
const seen = () => ({
  count: inside("count").textContent,
  names: [...inside("objects").querySelectorAll(".name")].map((e) => e.textContent),
  chips: [...inside("classes").children].map((e) => [e.textContent, e.getAttribute("aria-pressed")]),
});
const pixels = () => {
  const view = inside("view");
  return view.getContext("2d").getImageData(0, 0, view.width, view.height).data;
};
const changed = (a, b) => a.reduce((sum, value, i) => sum + (value !== b[i]), 0) / a.length;
const set = (id, value) => {
  inside(id).value = value;
  inside(id).dispatchEvent(new frame.contentWindow.Event("input"));
};
const file = async (name, type) => new File([await (await fetch(`/__check__/${name}`)).blob()], name, { type });
const drop = (one) => {
  const dataTransfer = new frame.contentWindow.DataTransfer();
  dataTransfer.items.add(one);
  frame.contentWindow.dispatchEvent(new frame.contentWindow.DragEvent("drop", { dataTransfer, cancelable: true }));
};
try {
  const told = {};
  let runs = 0;
  new BroadcastChannel("runs").onmessage = () => runs++;
  await until("the start", () => inside("open") && !inside("not-started") && !inside("open").disabled);
  Object.assign(told, { title: inside("title").textContent, about: inside("about").textContent });
  Object.assign(told, { engine: inside("engine").textContent, threshold: inside("threshold").value });
  told.privacy = inside("privacy").textContent;
  await until("practice", () => runs >= 8);
  await sleep(200);
  told.practised = runs;

  drop(await file("photo.png", "image/png"));
  await until("the first picture", () => inside("objects").querySelector(".name"));
  told.first = seen();
  told.scroll = [frame.contentDocument.documentElement.scrollWidth, frame.contentWindow.innerWidth];
  const drawn = pixels();
  set("threshold", 0.1);
  told.lower = seen();
  for (const chip of [...inside("classes").children]) [...inside("classes").children].find(
    (now) => now.label === chip.label).click();
  told.hidden = seen();
  told.drawn = changed(drawn, pixels());
  [...inside("classes").children].find((now) => now.textContent.startsWith("white")).click();
  told.white = seen();

  const blobs = [];
  const make = frame.contentWindow.URL.createObjectURL;
  frame.contentWindow.URL.createObjectURL = (blob) => (blobs.push(blob), make.call(frame.contentWindow.URL, blob));
  inside("json").click();
  inside("save").click();
  await until("saving", () => blobs.length === 2);
  told.json = JSON.parse(await blobs[0].text());
  const saved = await createImageBitmap(blobs[1]);
  told.saved = [saved.width, saved.height];
  frame.contentWindow.URL.createObjectURL = make;
  for (const name of ["red", "blue"]) {
    [...inside("classes").children].find((now) => now.textContent.startsWith(name)).click();
  }

  told.video = "not played by this browser";
  if (document.createElement("video").canPlayType('video/mp4; codecs="avc1.64000a"')) {
    drop(await file("clip.mp4", "video/mp4"));
    await until("the video", () => inside("times").textContent.includes("pictures per second"));
    inside("pause").click();
    await until("the pause", () => inside("objects").querySelector(".name"));
    told.video = { ...seen(), pause: inside("pause").textContent, times: inside("times").textContent };
    inside("stop").click();
    told.stopped = [inside("stop").hidden, inside("place-row").hidden];
  }
  inside("times").replaceChildren();
  inside("camera").click();
  await until("the camera", () => inside("times").textContent.includes("pictures per second"));
  told.camera = seen();
  inside("stop").click();

  drop(new File(["no picture"], "letter.txt", { type: "text/plain" }));
  for (let i = 0; !trouble() && i < 300; i++) await sleep(30);
  told.refused = trouble();

  const model = await (await fetch("/model.json")).json();
  const { toObjects } = await import("/objects.js");
  const ort = await import("/runtime/ort.wasm.min.mjs");
  const graph = new TextEncoder().encode("a graph");
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  const outputs = await session.run({ images: new ort.Tensor("uint8", new Uint8Array(4), [1, 1, 1, 4]) });
  told.masks = toObjects(model, outputs, model.trial_size, 0.1).map(({ box, alpha }) => ({
    box, area: alpha.box, raster: [alpha.height, alpha.width],
    set: [...alpha.data].map((value) => (value ? 1 : 0)).join(""),
  }));
  await post("done", JSON.stringify(told));
} catch (error) {
  await post("failed", String(error?.message || error));
}
"""


def outputs() -> dict[str, np.ndarray]:
    """What the graph is said to answer: smooth maps, so that masks have curved borders."""
    rng = np.random.default_rng(3)
    coarse = rng.standard_normal((len(SCORES), 5, 6))
    maps = np.kron(coarse, np.ones((4, 4))) + 0.3 * rng.standard_normal((len(SCORES), 20, 24))
    return {
        "scores": np.array([SCORES], np.float32),
        "labels": np.array([LABELS], np.int64),
        "boxes": np.array([BOXES], np.float32),
        "masks": (2 * maps[None]).astype(np.float32),
        "view_px": np.array([-8, 0, SIZE_PX[0] + 16, SIZE_PX[1]], np.float32),  # a frame around the picture
    }


def posted(values: dict[str, np.ndarray]) -> bytes:
    return json.dumps(
        {
            name: {"type": str(x.dtype), "dims": list(x.shape), "base64": base64.b64encode(x.tobytes()).decode()}
            for name, x in values.items()
        }
    ).encode()


def write(path):
    """A folder as an export writes it."""
    about = description(
        folder.ENGINE, variant="toy", task="segment", class_names=NAMES, category_ids=(1, 2, 7), threshold=0.5,
        title="Toy", rules=AnswerRules(clip_boxes=True)._asdict(), trial_size=SIZE_PX,
    )  # fmt: skip
    runtime = {name: b"" for name in FILES} | {"ort.wasm.min.mjs": RUNTIME.encode()}
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE_PX[::-1], 3), np.uint8)
    known = [
        {"label": a, "score": s, "box": list(b)} for a, s, b in zip(LABELS[:3], SCORES[:3], BOXES[:3], strict=True)
    ]
    folder.write_folder(path, b"a graph", about, runtime, (picture, known))


@pytest.fixture(scope="module", params=[390, 1280])
def told(request, tmp_path_factory):
    """What the page has shown, in a window of this width."""
    path = tmp_path_factory.mktemp("web")
    write(path)
    write_video(path / "clip.mp4", np.random.default_rng(1).integers(0, 256, (20, 64, 96, 3), np.uint8))
    page = f"""<!doctype html><body style="margin: 0"><iframe id="frame" src="/index.html?backend=wasm" allow="camera"
    style="border: 0; width: {request.param}px; height: 900px"></iframe>
    <script type="module" src="/__check__/trial.js"></script>"""
    own = {"trial.html": page.encode(), "trial.js": TRIAL.encode(), "outputs.json": posted(outputs())}
    own |= {"photo.png": (path / "check.png").read_bytes(), "clip.mp4": (path / "clip.mp4").read_bytes()}
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--window-size=1300,950")
    assert PROGRAM is not None
    with browser.serving(path, own) as (address, mailbox):
        with browser.started(PROGRAM, f"{address}/__check__/trial.html", flags) as process:
            browser.wait(mailbox, process, timeout_s=90)
    return json.loads(mailbox.posted["done"])


def test_the_page_says_what_it_is(told):
    assert told["title"] == "Toy" and told["about"] == "boxes and masks of 3 classes: red, white, blue"
    assert "WebAssembly, " in told["engine"] and "stay on this machine" in told["privacy"]
    assert 8 <= told["practised"] <= 17  # the check of the start and sixteen more, or what was heard of them
    assert told["threshold"] == "0.5" and told["scroll"][0] <= told["scroll"][1]


def test_a_dropped_picture_and_the_threshold(told):
    assert told["first"]["count"] == "3 objects" and told["first"]["names"] == ["red", "white", "red"]
    assert told["lower"]["names"] == ["red", "white", "red", "blue"]
    assert told["lower"]["chips"] == [["red 2", "true"], ["white 1", "true"], ["blue 1", "true"]]


def test_classes_are_hidden_and_shown(told):
    assert told["hidden"]["names"] == [] and {pressed for _, pressed in told["hidden"]["chips"]} == {"false"}
    assert told["drawn"] > 0.1  # boxes, masks and labels were there
    assert told["white"]["names"] == ["white"] and told["white"]["count"] == "1 object"


def test_what_is_saved_is_what_is_shown(told):
    assert told["json"]["size"] == list(SIZE_PX) and told["saved"] == list(SIZE_PX)
    (found,) = told["json"]["objects"]
    assert (found["name"], found["category_id"]) == ("white", 2)
    assert found["box"] == [0, *BOXES[1][1:]]  # cut at the picture's edge


def test_a_video_and_the_camera(told):
    assert told["camera"]["count"] == "4 objects"
    if isinstance(told["video"], str):
        pytest.skip(f"the video is {told['video']}")
    assert told["video"]["names"] == ["red", "white", "red", "blue"] and told["video"]["pause"] == "Continue"
    assert "96 × 64" in told["video"]["times"] and told["stopped"] == [True, True]


def test_other_files_are_refused(told):
    assert told["refused"].startswith("letter.txt is not a picture or video that this browser can read")


def test_masks_are_those_of_the_library(told):
    values = outputs()
    boxes = np.array([mask["box"] for mask in told["masks"]], np.float32)
    view = tuple(values["view_px"].tolist())
    masks = MapMasks(values["masks"][0][: len(boxes)], boxes, view, SIZE_PX)  # type: ignore[arg-type]
    assert len(boxes) == 4
    for i, mask in enumerate(told["masks"]):
        left, top, right, bottom = mask["area"]
        assert mask["raster"] == [bottom - top, right - left]  # not coarser than the picture
        found = np.zeros(SIZE_PX[::-1], bool)
        found[top:bottom, left:right] = np.array(list(mask["set"]), int).reshape(mask["raster"]).astype(bool)
        expected = masks.full(i)
        assert expected.sum() > 500 and (found != expected).sum() <= 2  # float32 in other orders
