// From the graph's outputs to objects, best first.

const FINEST = 512; // cells of a mask's raster along its longer side
const SAME_IOU = 0.5;
const SAME_SCORE = 0.05;
const SAME_SHARE = 0.8; // of the objects; others may be near-ties

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

/** Objects that score at least the threshold, boxes and masks in pixels of a picture of size [width, height]. */
export function toObjects(model, outputs, size, threshold) {
  const { labels, scores, boxes, masks } = outputs;
  const view = outputs.view_px?.data ?? [0, 0, ...size];
  const { clip_boxes, cut_to_boxes, interpolated } = model.rules;
  const objects = [];
  for (let i = 0; i < scores.data.length && scores.data[i] >= threshold; i++) {
    const label = Number(labels.data[i]);
    let box = Array.from(boxes.data.subarray(4 * i, 4 * i + 4));
    if (clip_boxes) box = box.map((side, axis) => Math.min(Math.max(side, 0), size[axis % 2]));
    const object = { label, name: model.class_names[label], category_id: model.category_ids[label], score: scores.data[i], box };
    if (masks) object.alpha = coverage(masks, i, view, size, cut_to_boxes ? box : null, interpolated);
    objects.push(object);
  }
  return objects;
}

/** Cells of a map where something is set, one cell more on each side: [left, top, right, bottom], or null. */
function support(map, height, width) {
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (map[y * width + x] < 0) continue;
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = y;
    }
  }
  return right < 0 ? null : [left - 1, top - 1, right + 2, bottom + 2];
}

/** Two cells and the share of the second for each of count places from begin to end, in units of cells. */
function taps(begin, end, count, cells) {
  const out = { first: new Int32Array(count), second: new Int32Array(count), share: new Float32Array(count) };
  for (let i = 0; i < count; i++) {
    const at = Math.min(Math.max(begin + ((i + 0.5) * (end - begin)) / count - 0.5, 0), cells - 1);
    out.first[i] = Math.floor(at);
    out.second[i] = Math.min(out.first[i] + 1, cells - 1);
    out.share[i] = at - out.first[i];
  }
  return out;
}

/** Where the probability (interpolated: it, or its logit) reaches one half, as bytes of a raster over part of the picture. */
function coverage(masks, row, view, size, box, interpolated) {
  const [height, width] = masks.dims.slice(-2);
  const map = masks.data.subarray(row * height * width, (row + 1) * height * width);
  const cells = support(map, height, width);
  const nothing = { data: new Uint8Array(0), width: 0, height: 0, box: [0, 0, 0, 0] };
  if (!cells) return nothing;
  const [across, down] = [view[2] / width, view[3] / height]; // pixels of the picture in a cell
  const edges = [0, 1, 2, 3].map((side) => view[side % 2] + cells[side] * (side % 2 ? down : across));
  const whole = [0, 0, ...size];
  const area = edges.map((edge, side) => {
    const bounds = [edge, whole[side], ...(box ? [box[side]] : [])];
    return side < 2 ? Math.floor(Math.max(...bounds)) : Math.ceil(Math.min(...bounds));
  });
  const [wide, tall] = [area[2] - area[0], area[3] - area[1]];
  if (wide <= 0 || tall <= 0) return nothing;
  const finer = Math.min(1, FINEST / Math.max(wide, tall));
  const [columns, rows] = [wide, tall].map((side) => Math.max(1, Math.round(side * finer)));
  const x = taps((area[0] - view[0]) / across, (area[2] - view[0]) / across, columns, width);
  const y = taps((area[1] - view[1]) / down, (area[3] - view[1]) / down, rows, height);
  const [values, limit] = interpolated === "logit" ? [map, 0] : [Float32Array.from(map, sigmoid), 0.5];
  const data = new Uint8Array(rows * columns);
  for (let r = 0; r < rows; r++) {
    const [upper, lower, share] = [y.first[r] * width, y.second[r] * width, y.share[r]];
    for (let c = 0; c < columns; c++) {
      const [i, j, part] = [x.first[c], x.second[c], x.share[c]];
      const above = values[upper + i] * (1 - part) + values[upper + j] * part;
      const below = values[lower + i] * (1 - part) + values[lower + j] * part;
      if (above * (1 - share) + below * share >= limit) data[r * columns + c] = 255;
    }
  }
  return { data, width: columns, height: rows, box: area };
}

function overlap(a, b) {
  const wide = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const tall = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (wide <= 0 || tall <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (wide * tall) / (area(a) + area(b) - wide * tall);
}

/** Whether what a runtime finds is what the model finds: most objects have one of their class, place and score. */
export function sameObjects(expected, found) {
  const is = (a, b) => a.label === b.label && Math.abs(a.score - b.score) <= SAME_SCORE && overlap(a.box, b.box) >= SAME_IOU;
  const met = expected.filter((object) => found.some((other) => is(object, other))).length;
  return met >= SAME_SHARE * expected.length;
}
