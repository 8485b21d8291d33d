// The page of a detector: pictures, videos and the camera go to an engine, what it finds is drawn and listed.
//
// model.json says which engine: "onnxruntime-web" computes in this browser (in_browser.js), "server" asks the server that
// gave the page (on_server.js). Both give an object with detect(picture, {threshold}) and describe().

import { classColour, draw } from "./draw.js";

const LEAST_SCORE = 0.05; // the slider's end: what it hides and shows needs no new run
const LISTED = 100;
const ENGINES = { "onnxruntime-web": "./in_browser.js", server: "./on_server.js" };
const PRIVACY = {
  "onnxruntime-web": "Pictures stay on this machine: the model runs in the browser, and the page may reach no address but its own.",
  server: "Pictures are sent to the server that gave this page, and nowhere else.",
};

const element = (id) => document.getElementById(id);
const [view, stage, problem] = ["view", "stage", "problem"].map(element);

let model = null;
let engine = null;
let picture = null; // ImageBitmap that is shown
let result = null; // what was found in it
let chosen = null;
let stream = null; // {video, isCamera, url}: what is playing
let generation = 0; // counts sources; answers for an older one are dropped
const hiddenLabels = new Set();

function report(text) {
  element("work").hidden = !text;
  element("work-text").textContent = text || "";
}

function fail(text) {
  problem.textContent = text || "";
  problem.hidden = !text;
  if (text) report("");
}

const threshold = () => Number(element("threshold").value);
const above = () => (result ? result.objects.filter((object) => object.score >= threshold()) : []);
const shown = () => above().filter((object) => !hiddenLabels.has(object.label));

/** The canvas as large as the stage allows, the picture's aspect kept. */
function fit() {
  if (!picture) return;
  const ratio = picture.width / picture.height;
  const room = stage.clientWidth;
  const wide = matchMedia("(max-width: 900px)").matches;
  const tall = Math.max(240, window.innerHeight * (wide ? 0.7 : 1) - (wide ? 0 : stage.getBoundingClientRect().top + scrollY + 30));
  const width = Math.max(1, Math.min(room, tall * ratio, Math.max(picture.width * 2, 320)));
  const unit = window.devicePixelRatio || 1;
  view.style.width = `${width}px`;
  view.style.height = `${width / ratio}px`;
  view.width = Math.max(1, Math.round(width * unit));
  view.height = Math.max(1, Math.round((width * unit) / ratio));
}

function redraw() {
  if (!picture) return;
  draw(view, picture, result ? result.size : [picture.width, picture.height], shown(), {
    chosen,
    unit: window.devicePixelRatio || 1,
  });
}

function child(parent, tag, text, className) {
  const node = parent.appendChild(document.createElement(tag));
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function dot(parent, label) {
  child(parent, "i", undefined, "dot").style.background = classColour(label);
}

function choose(object) {
  chosen = object;
  redraw();
  for (const button of element("objects").querySelectorAll("button")) {
    button.classList.toggle("chosen", button.object === object);
  }
}

function listClasses(objects) {
  const counts = new Map();
  for (const object of objects) counts.set(object.label, (counts.get(object.label) || 0) + 1);
  const holder = element("classes");
  const focused = holder.contains(document.activeElement) ? document.activeElement.label : null;
  holder.replaceChildren();
  for (const [label, count] of [...counts].sort((a, b) => b[1] - a[1])) {
    const button = child(holder, "button");
    button.type = "button";
    button.label = label;
    button.setAttribute("aria-pressed", String(!hiddenLabels.has(label)));
    dot(button, label);
    child(button, "span", `${objects.find((object) => object.label === label).name} ${count}`);
    button.addEventListener("click", () => {
      if (!hiddenLabels.delete(label)) hiddenLabels.add(label);
      update();
    });
    if (label === focused) button.focus();
  }
}

function listObjects(objects) {
  const list = element("objects");
  list.replaceChildren();
  if (stream && !stream.video.paused) return; // of moving pictures nobody can read it
  for (const object of objects.slice(0, LISTED)) {
    const button = child(child(list, "li"), "button");
    button.type = "button";
    button.object = object;
    dot(button, object.label);
    child(button, "span", object.name, "name");
    child(button, "span", object.score.toFixed(2), "score");
    button.addEventListener("click", () => choose(chosen === object ? null : object));
    button.addEventListener("mouseenter", () => choose(object));
    button.addEventListener("mouseleave", () => choose(null));
  }
  if (objects.length > LISTED) child(child(list, "li"), "span", ` and ${objects.length - LISTED} more`, "soft");
}

/** Everything that follows from result, threshold and classes; no new run. */
function update() {
  element("threshold-text").value = threshold().toFixed(2);
  if (!result) return;
  const all = above();
  const objects = shown();
  if (chosen && !objects.includes(chosen)) chosen = null;
  element("found").hidden = false;
  const best = result.objects.length ? Math.max(...result.objects.map((object) => object.score)) : 0;
  const none = best ? `Nothing above ${threshold().toFixed(2)}; the best scores ${best.toFixed(2)}` : "Nothing found";
  const some = `${objects.length} object${objects.length === 1 ? "" : "s"}`;
  element("count").textContent = all.length ? some : none;
  listClasses(all);
  listObjects(objects);
  redraw();
}

function showTimes(total_ms, fps) {
  const rows = Object.entries(result.times_ms || {});
  rows.push(["all in all", total_ms]);
  const list = element("times");
  list.replaceChildren();
  for (const [name, ms] of rows) {
    child(list, "dt", name);
    child(list, "dd", ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`);
  }
  if (fps) {
    child(list, "dt", "pictures per second");
    child(list, "dd", fps.toFixed(fps < 10 ? 1 : 0));
  }
  child(list, "dt", "picture");
  child(list, "dd", `${result.size[0]} × ${result.size[1]}`);
  element("engine").textContent = engine.describe();
}

function showPicture(bitmap, found) {
  const resized = !picture || picture.width !== bitmap.width || picture.height !== bitmap.height;
  if (picture && picture !== bitmap) picture.close();
  picture = bitmap;
  result = found;
  element("empty").hidden = true;
  view.hidden = false;
  view.setAttribute("role", "img");
  view.setAttribute("aria-label", found ? `picture with ${found.objects.length} candidates` : "picture");
  if (resized || !found) fit();
  redraw();
}

async function openPicture(file) {
  const mine = ++generation;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    const kind = file.name ? `${file.name} is` : "this is";
    fail(`${kind} not a picture or video that this browser can read. JPEG, PNG, WebP and MP4 work everywhere; HEIC, TIFF and raw pictures mostly do not: convert them first.`);
    return;
  }
  if (mine !== generation) return bitmap.close();
  chosen = null;
  showPicture(bitmap, null);
  element("found").hidden = true;
  report("looking");
  const start = performance.now();
  try {
    const found = await engine.detect(file, { threshold: LEAST_SCORE });
    if (mine !== generation) return;
    showPicture(bitmap, found);
    showTimes(performance.now() - start);
    report("");
    update();
  } catch (error) {
    if (mine === generation) fail(`The picture could not be looked at: ${error.message || error}`);
  }
}

/** Frames of what plays, the newest each time; the next one is taken when the last one is done. */
async function follow(mine) {
  const { video } = stream;
  let fps = 0;
  let last = null;
  let at = -1;
  while (mine === generation) {
    const isStill = video.paused && at === video.currentTime;
    if (isStill || video.readyState < 2 || document.hidden) {
      if (isStill) last = null;
      await new Promise((resolve) => setTimeout(resolve, 60));
      continue;
    }
    at = video.currentTime;
    let bitmap;
    try {
      bitmap = await createImageBitmap(video);
      const start = performance.now();
      const found = await engine.detect(bitmap, { threshold: LEAST_SCORE });
      if (mine !== generation) return bitmap.close();
      const now = performance.now();
      if (last !== null) fps = fps ? 0.8 * fps + 200 / (now - last) : 1000 / (now - last);
      last = now;
      showPicture(bitmap, found);
      showTimes(now - start, fps);
      report("");
      update();
      if (!stream.isCamera && video.duration) element("place").value = video.currentTime / video.duration;
    } catch (error) {
      bitmap?.close();
      if (mine !== generation) return;
      halt();
      return fail(`A frame could not be looked at: ${error.message || error}`);
    }
  }
}

function halt() {
  generation++;
  if (stream) {
    stream.video.pause();
    stream.video.srcObject?.getTracks().forEach((track) => track.stop());
    if (stream.url) URL.revokeObjectURL(stream.url);
    stream = null;
  }
  for (const id of ["pause", "stop", "place-row"]) element(id).hidden = true;
  report("");
  update();
}

async function play(video, isCamera, url) {
  stream = { video, isCamera, url };
  const mine = ++generation;
  chosen = null;
  element("pause").textContent = "Pause";
  element("pause").hidden = element("stop").hidden = false;
  element("place-row").hidden = isCamera;
  report("waiting for the first frame");
  try {
    await video.play();
  } catch {
    if (mine !== generation) return;
    halt();
    return fail("This browser cannot play the video. MP4 with H.264 and WebM work in most.");
  }
  await follow(mine);
}

function newVideo() {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, playsInline: true });
  return video;
}

function openFile(file) {
  if (!file || !engine) return;
  fail("");
  halt();
  if (file.type.startsWith("video/")) {
    const video = Object.assign(newVideo(), { loop: true, src: URL.createObjectURL(file) });
    return play(video, false, video.src);
  }
  return openPicture(file);
}

const CAMERA = {
  NotAllowedError: "The camera was refused. Allow it for this page in the browser's address bar, then try again.",
  NotFoundError: "No camera was found.",
  NotReadableError: "The camera is in use by another program.",
};

async function openCamera() {
  fail("");
  if (!navigator.mediaDevices?.getUserMedia) {
    return fail("Browsers give the camera only to pages from https addresses and from localhost.");
  }
  halt();
  report("asking for the camera");
  const video = newVideo();
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: { ideal: "environment" }, width: { ideal: 1280 } },
    });
  } catch (error) {
    return fail(CAMERA[error.name] || `The camera cannot be used: ${error.message}`);
  }
  await play(video, true, null);
}

function saveAs(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function savePicture() {
  const canvas = Object.assign(document.createElement("canvas"), { width: picture.width, height: picture.height });
  draw(canvas, picture, result.size, shown(), { unit: Math.max(0.7, Math.sqrt(picture.width * picture.height) / 900) });
  canvas.toBlob((blob) => saveAs(blob, "detections.png"), "image/png");
}

function saveJson() {
  const objects = shown().map(({ alpha, ...object }) => object);
  saveAs(new Blob([JSON.stringify({ size: result.size, objects }, null, 2)], { type: "application/json" }), "detections.json");
}

/** The smallest box under the pointer. */
function chooseAt(event) {
  if (!result) return;
  const area = view.getBoundingClientRect();
  const x = ((event.clientX - area.left) / area.width) * result.size[0];
  const y = ((event.clientY - area.top) / area.height) * result.size[1];
  const size = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
  const under = shown().filter(({ box }) => x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3]);
  const found = under.sort((a, b) => size(a) - size(b))[0] || null;
  choose(found === chosen ? null : found);
}

function listen() {
  element("open").addEventListener("click", () => element("file").click());
  element("file").addEventListener("change", (event) => {
    openFile(event.target.files[0]);
    event.target.value = "";
  });
  element("camera").addEventListener("click", openCamera);
  element("stop").addEventListener("click", halt);
  element("pause").addEventListener("click", () => {
    const { video } = stream;
    if (video.paused) video.play();
    else video.pause();
    element("pause").textContent = video.paused ? "Continue" : "Pause";
    update();
  });
  element("place").addEventListener("input", (event) => {
    if (stream?.video.duration) stream.video.currentTime = event.target.value * stream.video.duration;
  });
  element("threshold").addEventListener("input", update);
  element("save").addEventListener("click", savePicture);
  element("json").addEventListener("click", saveJson);
  view.addEventListener("click", chooseAt);
  window.addEventListener("resize", () => (fit(), redraw()));
  window.addEventListener("paste", (event) => event.clipboardData?.files[0] && openFile(event.clipboardData.files[0]));
  let depth = 0;
  const over = (on) => {
    depth = on === null ? 0 : Math.max(0, depth + on);
    element("dropping").hidden = !depth;
    stage.classList.toggle("over", depth > 0);
  };
  window.addEventListener("dragenter", () => over(1));
  window.addEventListener("dragleave", () => over(-1));
  window.addEventListener("dragover", (event) => event.preventDefault());
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    over(null);
    const file = event.dataTransfer?.files[0];
    if (file) openFile(file);
    else fail("That is no file. Save the picture first, then drop the file here.");
  });
}

async function start() {
  element("not-started").remove();
  element("open").disabled = element("camera").disabled = true;
  report("loading");
  try {
    const answer = await fetch("model.json");
    if (!answer.ok) throw new Error(`model.json: the server answers ${answer.status}; the folder is not complete`);
    model = await answer.json();
    if (!ENGINES[model.engine]) throw new Error(`model.json names the engine ${model.engine}, which this page does not have`);
    const count = model.class_names.length;
    element("title").textContent = model.title || model.variant;
    document.title = element("title").textContent;
    element("about").textContent = `${model.task === "segment" ? "boxes and masks" : "boxes"} of ${count} class${count === 1 ? "" : "es"}${count <= 8 ? `: ${model.class_names.join(", ")}` : ""}`;
    element("privacy").textContent = PRIVACY[model.engine];
    element("threshold").value = model.threshold ?? 0.5;
    update();
    const { createEngine } = await import(ENGINES[model.engine]);
    engine = await createEngine(model, report);
    element("engine").textContent = engine.describe();
    element("open").disabled = element("camera").disabled = false;
    listen();
    report("");
  } catch (error) {
    fail(`The page cannot start: ${error.message || error}`);
  }
}

start();
