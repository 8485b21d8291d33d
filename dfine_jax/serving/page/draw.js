// Boxes, masks and labels on a picture, in the measures of the canvas: lines and letters have one size on every screen.

const HUE_STEP = 137.50776405; // the golden angle: neighbouring labels differ most
const LIGHTNESS = [0.72, 0.6, 0.84];

/** Colour of a class, as pictures drawn by the library have it. */
export function classColour(label, alpha = 1) {
  const hue = (30 + label * HUE_STEP) % 360;
  return `oklch(${LIGHTNESS[Math.floor(label / 8) % 3]} 0.2 ${hue.toFixed(1)} / ${alpha})`;
}

const textColour = (label) => (LIGHTNESS[Math.floor(label / 8) % 3] > 0.65 ? "#000" : "#fff");

const tinted = new WeakMap(); // object -> canvas of its mask

function maskCanvas(object) {
  let canvas = tinted.get(object);
  if (!canvas) {
    const { data, width, height } = object.alpha;
    canvas = new OffscreenCanvas(width, height);
    const pixels = new ImageData(width, height);
    for (let i = 0; i < data.length; i++) pixels.data[4 * i + 3] = data[i];
    const context = canvas.getContext("2d");
    context.putImageData(pixels, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = classColour(object.label);
    context.fillRect(0, 0, width, height);
    tinted.set(object, canvas);
  }
  return canvas;
}

function drawMask(context, object, scale, strong) {
  context.globalAlpha = strong ? 0.65 : 0.42;
  if (object.alpha) {
    const [x0, y0, x1, y1] = object.alpha.box;
    if (object.alpha.width && object.alpha.height) {
      context.drawImage(maskCanvas(object), x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
    }
  } else if (object.polygons) {
    const path = new Path2D();
    for (const ring of object.polygons) {
      for (let i = 0; i < ring.length; i += 2) path[i ? "lineTo" : "moveTo"](ring[i] * scale, ring[i + 1] * scale);
      path.closePath();
    }
    context.fillStyle = classColour(object.label);
    context.fill(path, "evenodd");
    context.globalAlpha = 1;
    context.lineWidth = strong ? 2 : 1;
    context.strokeStyle = classColour(object.label);
    context.stroke(path);
  }
  context.globalAlpha = 1;
}

function frame(context, object, scale, line, strong) {
  const [x0, y0, x1, y1] = object.box.map((side) => side * scale);
  context.lineWidth = line * (strong ? 2 : 1) + 2;
  context.strokeStyle = "#000a";
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  context.lineWidth = line * (strong ? 2 : 1);
  context.strokeStyle = classColour(object.label);
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
}

const shared = (a, b) =>
  Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));

/** Where a label stands: above its box, in it or below it, wherever it covers the fewest others; null: nowhere. */
function place(box, width, height, canvas, placed) {
  const [x0, y0, x1, y1] = box;
  const places = [[x0, y0 - height], [x1 - width, y0 - height], [x0, y0], [x0, y1], [x1 - width, y1], [x1 - width, y0]];
  let best = null;
  for (const [x, y] of places) {
    const left = Math.min(Math.max(x, 0), Math.max(0, canvas.width - width));
    const top = Math.min(Math.max(y, 0), Math.max(0, canvas.height - height));
    const plate = [left, top, left + width, top + height];
    const covered = placed.reduce((sum, other) => sum + shared(plate, other), 0) / (width * height);
    const cost = covered + (0.02 * (Math.abs(left - x) + Math.abs(top - y))) / height;
    if (!best || cost < best.cost - 1e-9) best = { plate, cost, covered };
  }
  return best.covered > 0.3 ? null : best.plate;
}

/**
 * Draw a picture and what was found in it over the whole canvas.
 *
 * objects: best first; chosen: the one to stand out, or null; unit: canvas pixels per pixel of the screen.
 */
export function draw(canvas, picture, size, objects, { chosen = null, unit = 1 } = {}) {
  const context = canvas.getContext("2d");
  const scale = canvas.width / size[0];
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const back = [...objects].reverse();
  for (const object of back) drawMask(context, object, scale, object === chosen);
  const line = Math.max(1, 2.2 * unit);
  for (const object of back) {
    frame(context, object, scale, object.alpha || object.polygons ? line / 2 : line, object === chosen);
  }
  if (chosen) frame(context, chosen, scale, line, true);
  const font = 13 * unit;
  context.font = `600 ${font}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const placed = [];
  const order = chosen ? [chosen, ...objects.filter((object) => object !== chosen)] : objects;
  for (const object of order) {
    const text = `${object.name} ${object.score.toFixed(2)}`;
    const width = Math.ceil(context.measureText(text).width + 10 * unit);
    const height = Math.ceil(font * 1.5);
    const box = object.box.map((side) => side * scale);
    const plate = place(box, width, height, canvas, placed);
    if (!plate) continue;
    placed.push(plate);
    context.fillStyle = classColour(object.label);
    context.fillRect(plate[0], plate[1], width, height);
    context.fillStyle = textColour(object.label);
    context.fillText(text, plate[0] + 5 * unit, plate[1] + height / 2 + unit / 2);
  }
}
