// ONNX Runtime Web in a worker. The graph takes a picture's bytes and gives boxes in its pixels: nothing is computed on
// pixels here.

import { sameObjects, toObjects } from "./objects.js";

const RUNTIME = new URL("./runtime/", import.meta.url);
const MOST_THREADS = 8;
const PRACTICE_RUNS = 16;
const PRACTICE_MS = 500; // of one run, at most: so long may a visitor's picture wait for one

let model = null;
let session = null;
let ort = null;
let decoded = null; // canvas that pictures are decoded on
let asked = false; // for the objects of a picture
let last = Promise.resolve(); // what is done is done one after another

const progress = (text) => postMessage({ kind: "progress", text });

async function adapterName() {
  try {
    const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
    if (!adapter) return null;
    const { vendor, architecture, description } = adapter.info || {};
    return description || [vendor, architecture].filter(Boolean).join(" ") || "unnamed";
  } catch {
    return null;
  }
}

async function graph() {
  const answer = await fetch(new URL(model.graph, import.meta.url));
  if (!answer.ok) throw new Error(`${model.graph}: the server answers ${answer.status}; the folder is not complete`);
  const bytes = new Uint8Array(model.graph_bytes);
  let received = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (received + value.length > bytes.length) throw new Error(`${model.graph} is longer than model.json says`);
    bytes.set(value, received);
    received += value.length;
    progress(`loading the model: ${(received / 1e6).toFixed(0)} of ${(bytes.length / 1e6).toFixed(0)} MB`);
  }
  if (received !== bytes.length) throw new Error(`${model.graph} is shorter than model.json says; load the page again`);
  return bytes;
}

/** The picture's bytes as the graph's input: RGBA, upright, as many pixels as it has. */
async function input(picture) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  const bitmap = picture instanceof ImageBitmap ? picture : await createImageBitmap(picture, options);
  const { width, height } = bitmap;
  if (!decoded || decoded.width !== width || decoded.height !== height) decoded = new OffscreenCanvas(width, height);
  const context = decoded.getContext("2d", { willReadFrequently: true });
  context.globalCompositeOperation = "copy";
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return { size: [width, height], images: new ort.Tensor("uint8", bytes, [1, height, width, 4]) };
}

async function run(picture) {
  const start = performance.now();
  const { size, images } = await input(picture);
  const middle = performance.now();
  const outputs = await session.run({ images });
  return { size, outputs, times_ms: { "decoding": middle - start, "the model": performance.now() - middle } };
}

async function detect(picture, threshold) {
  const { size, outputs, times_ms } = await run(picture);
  const start = performance.now();
  const objects = toObjects(model, outputs, size, threshold);
  if (model.task === "segment") times_ms.masks = performance.now() - start;
  return { size, objects, times_ms };
}

async function open(backend, threads, bytes) {
  ort = await import(new URL(backend === "webgpu" ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs", RUNTIME));
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = RUNTIME.href;
  ort.env.wasm.numThreads = threads;
  progress(backend === "webgpu" ? "preparing the model for the GPU" : "preparing the model");
  session = await ort.InferenceSession.create(bytes, { executionProviders: [backend] });
}

/** The first run, which takes longest, on a picture whose objects are known; gives the picture. */
async function warmUp(backend) {
  progress(backend === "webgpu" ? "first run: the GPU's programs are made" : "first run");
  const answer = await fetch(new URL(model.check.file, import.meta.url));
  if (!answer.ok) throw new Error(`${model.check.file}: the server answers ${answer.status}`);
  const picture = await answer.blob();
  const { objects } = await detect(picture, 0);
  if (!sameObjects(model.check.objects, objects)) throw new Error("it finds other objects than the model does");
  return picture;
}

/**
 * Browsers translate WebAssembly quickly at first and thoroughly while it runs, so that the first ten or twenty answers
 * take half as long again or more. They are given before a visitor asks, as long as nobody does.
 */
function practise(picture, runs) {
  last = last.then(async () => {
    if (asked) return;
    const start = performance.now();
    const ran = await run(picture).then(() => true, () => false); // an error is told with a visitor's own picture
    const soon = performance.now() - start < PRACTICE_MS;
    if (ran && soon && runs > 1) setTimeout(() => practise(picture, runs - 1));
  });
}

async function start({ backend, threads }) {
  const cores = navigator.hardwareConcurrency || 1;
  const usual = cores > 4 ? Math.ceil(cores / 2) : cores;
  const count = crossOriginIsolated ? Math.min(threads || usual, MOST_THREADS) : 1;
  const bytes = await graph();
  const remarks = [];
  const adapter = backend === "wasm" ? null : await adapterName();
  if (backend === "webgpu" && !adapter) throw new Error("this browser has no WebGPU; take ?backend=wasm");
  const begin = performance.now();
  const seconds = () => `ready after ${((performance.now() - begin) / 1000).toFixed(1)} s`;
  if (adapter) {
    try {
      await open("webgpu", count, bytes);
      await warmUp("webgpu");
      return `WebGPU, ${adapter}; ${seconds()}`;
    } catch (error) {
      if (backend === "webgpu") throw new Error(`WebGPU cannot run this model (${error.message})`);
      remarks.push(`WebGPU (${adapter}) is not used: ${error.message}`);
      await session?.release().catch(() => {});
    }
  } else if (!backend) {
    remarks.push("no WebGPU here");
  }
  await open("wasm", count, bytes);
  const picture = await warmUp("wasm");
  setTimeout(() => practise(picture, PRACTICE_RUNS));
  if (!crossOriginIsolated) remarks.push("more threads need the headers COOP and COEP");
  return [`WebAssembly, ${count} thread${count === 1 ? "" : "s"}; ${seconds()}`, ...remarks].join(". ");
}

async function answer(data) {
  if (data.kind === "start") {
    model = data.model;
    return [await start(data)];
  }
  if (data.kind === "detect") {
    const found = await detect(data.picture, data.threshold);
    return [found, found.objects.flatMap(({ alpha }) => (alpha ? [alpha.data.buffer] : []))];
  }
  const { size, outputs, times_ms } = await run(data.picture);
  const plain = Object.entries(outputs).map(([name, { dims, data, type }]) => [name, { dims, data, type }]);
  return [{ size, outputs: Object.fromEntries(plain), times_ms }];
}

onmessage = ({ data }) => {
  asked ||= data.kind !== "start";
  last = last.then(async () => {
    try {
      const [value, transferred = []] = await answer(data);
      postMessage({ id: data.id, kind: "answer", value }, transferred);
    } catch (error) {
      postMessage({ id: data.id, kind: "error", text: error?.message || String(error) });
    }
  });
};
