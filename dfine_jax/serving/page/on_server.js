// The engine on the server that gave the page: pictures are posted to it, what it finds comes back as JSON.

const FRAME_PX = 1280; // longer side of frames that are sent; the picture on the page keeps its size
const FILE_PX = 4096; // of pictures that the server does not take as they are
const TRIES = 4; // while it has too much to do

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** A picture as JPEG, its longer side at most so many pixels. */
async function asJpeg(bitmap, longest) {
  const scale = Math.min(1, longest / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the browser cannot encode it"))), "image/jpeg", 0.9),
  );
}

/** A file that the server does not read or that is too large, as one that it does. */
async function reencoded(file) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  try {
    return await asJpeg(bitmap, FILE_PX);
  } finally {
    bitmap.close();
  }
}

async function post(body, threshold) {
  const address = new URL("detect", document.baseURI);
  address.searchParams.set("threshold", threshold);
  for (let left = TRIES; ; left--) {
    let answer;
    try {
      answer = await fetch(address, { method: "POST", body, headers: { Accept: "application/json" } });
    } catch {
      throw new Error("the server cannot be reached; is it still running?");
    }
    if (answer.status === 503 && left > 1) {
      await pause(1000 * (Number(answer.headers.get("Retry-After")) || 1));
      continue;
    }
    const isJson = (answer.headers.get("Content-Type") || "").startsWith("application/json");
    const value = isJson ? await answer.json() : {};
    if (answer.ok && value.objects) return value;
    throw Object.assign(new Error(value.error || `the server answers ${answer.status}`), { status: answer.status });
  }
}

/** Boxes and outlines of a picture that was made smaller, in pixels of the picture itself. */
function enlarged(found, size) {
  const by = [size[0] / found.size[0], size[1] / found.size[1]];
  const scaled = (values) => values.map((value, i) => value * by[i % 2]);
  const objects = found.objects.map((object) => ({
    ...object,
    box: scaled(object.box),
    ...(object.polygons && { polygons: object.polygons.map(scaled) }),
  }));
  return { ...found, size, objects };
}

/** As page.js wants it; model is model.json. */
export async function createEngine(model, report) {
  report("asking the server");
  const where = [model.runs_in.runtime, model.runs_in.device].filter(Boolean).join(" on ") || "computed";
  const most = 1e6 * model.limits.body_mb;

  async function detectFile(file, threshold) {
    if (file.size > most) return post(await reencoded(file), threshold);
    try {
      return await post(file, threshold);
    } catch (error) {
      if (error.status !== 415 && error.status !== 413) throw error;
      return post(await reencoded(file), threshold); // of a kind that only the browser reads, or of too many pixels
    }
  }

  async function detect(picture, { threshold }) {
    if (!("width" in picture)) return detectFile(picture, threshold); // a Blob, maybe of another window
    const size = [picture.width, picture.height]; // before it may be closed
    return enlarged(await post(await asJpeg(picture, FRAME_PX), threshold), size);
  }

  return { detect, describe: () => `${where}, on the server` };
}
