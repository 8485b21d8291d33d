// The engine that computes in this browser: ONNX Runtime Web in a worker, so that the page stays awake.
//
// ?backend=wasm or ?backend=webgpu in the address takes one of the two, ?threads=N so many threads.

/**
 * Threads need two headers that few static hosts send; a service worker adds them to what it hands on. The page loads once
 * more when it is in place. Where it cannot be, the page works with one thread.
 */
async function isolated(report) {
  if (crossOriginIsolated || !("serviceWorker" in navigator) || !isSecureContext) return;
  const tried = "isolation-tried";
  if (sessionStorage.getItem(tried)) return;
  sessionStorage.setItem(tried, "yes");
  report("asking for threads");
  try {
    const registration = await navigator.serviceWorker.register(new URL("isolate.js", import.meta.url));
    const installing = registration.installing || registration.waiting;
    if (installing) {
      await new Promise((resolve) => {
        installing.addEventListener("statechange", () => installing.state !== "installing" && resolve());
        if (installing.state !== "installing") resolve();
        setTimeout(resolve, 3000);
      });
    }
    await navigator.serviceWorker.ready;
  } catch {
    return;
  }
  location.reload();
  await new Promise(() => {}); // nothing more in this life of the page
}

/** As page.js wants it; model is model.json. */
export async function createEngine(model, report) {
  await isolated(report);
  const wanted = new URLSearchParams(location.search);
  const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  const waiting = new Map();
  let count = 0;
  let described = "";

  const ask = (kind, values = {}) =>
    new Promise((resolve, reject) => {
      waiting.set(++count, { resolve, reject });
      worker.postMessage({ kind, id: count, ...values });
    });
  worker.addEventListener("message", ({ data }) => {
    if (data.kind === "progress") return report(data.text);
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.kind === "error") reject(new Error(data.text));
    else resolve(data.value);
  });
  worker.addEventListener("error", (event) => {
    for (const { reject } of waiting.values()) reject(new Error(event.message || "the worker could not be loaded"));
    waiting.clear();
  });

  described = await ask("start", {
    model,
    backend: wanted.get("backend"),
    threads: Number(wanted.get("threads")) || null,
  });
  return {
    detect: (picture, { threshold }) => ask("detect", { picture, threshold }),
    /** All outputs of the graph as they are, for checks: {name: {dims, data}}. */
    outputs: (picture) => ask("outputs", { picture }),
    describe: () => described,
  };
}
