// Values of tiles → colors. Done here, so that opacity, color map and threshold need no server.

const BINS = 56;
const SIGNED = new Set(["lrp", "gradient_input", "smoothgrad", "integrated_gradients", "perturbation", "gradcam"]);
const UNITS = {
  attention: "attention weight, sums to 1", attention_raw: "attention before the softmax", rollout: "share of the class token",
  lrp: "contribution to the logit", gradient_input: "d logit × (tile − average tile)",
  smoothgrad: "smoothed d logit × (tile − average tile)",
  integrated_gradients: "share of the logit's difference to white", perturbation: "logit of the tile alone",
  gradcam: "mean Grad-CAM of the tile", attention_scores: "CLAM's attention score",
};

export const isSigned = (method) => SIGNED.has(method);

export class Layer {
  constructor(model, method, tiles) {
    Object.assign(this, { model, method, tiles, signed: isSigned(method) });
    this.raster = null;
  }

  // Choose the scale: fills `shown` (what is colored) and its ends.
  rescale(scale) {
    const { values, n } = this.tiles;
    this.unit = UNITS[this.method] ?? this.method.replaceAll("_", " ");
    this.shown = values;
    if (scale === "rank") {
      this.shown = ranks(values);
      this.ends = [0, 1];
      this.unit = `rank of ${this.unit}`;
    } else if (scale === "own" && this.method === "attention") {
      this.shown = Float32Array.from(values, (value) => Math.log2(Math.max(value * n, 2 ** -30)));
      this.ends = [-6, 6];
      this.unit = "log2 (attention × number of tiles)";
    } else if (this.signed) {
      const size = quantile(Float32Array.from(values, Math.abs), 0.99) || 1;
      this.ends = [-size, size];
    } else {
      const [low, high] = range(values);
      this.ends = high > low ? [low, high] : [low - 0.5, low + 0.5];
    }
    this.histogram = this.count();
  }

  // Position of a value between the ends, 0 to 1000; what lies beyond takes the end's.
  position(row) {
    const [low, high] = this.ends;
    return Math.min(1000, Math.max(0, (1000 * (this.shown[row] - low)) / (high - low)));
  }

  count() {
    const bins = new Uint32Array(BINS);
    for (let row = 0; row < this.tiles.n; row++)
      if (Number.isFinite(this.shown[row])) bins[Math.min(BINS - 1, Math.floor((this.position(row) / 1000) * BINS))]++;
    return bins;
  }

  // One pixel per tile where tiles lie in rows and columns, else rectangles in a small picture.
  color(table, from, to) {
    const { n, x, y, width, height, stepX, stepY } = this.tiles;
    const [x0, x1] = range(x), [y0, y1] = range(y);
    const regular = stepX > 0 && stepY > 0;
    const unit = regular ? [stepX, stepY] : cell(x1 - x0 + width, y1 - y0 + height, width, height);
    const columns = regular ? Math.round((x1 - x0) / stepX) + 1 : Math.ceil((x1 - x0 + width) / unit[0]);
    const rows = regular ? Math.round((y1 - y0) / stepY) + 1 : Math.ceil((y1 - y0 + height) / unit[1]);
    const canvas = this.raster?.canvas ?? document.createElement("canvas");
    canvas.width = Math.max(1, columns);
    canvas.height = Math.max(1, rows);
    const pen = canvas.getContext("2d");
    let kept = 0;
    const image = regular ? pen.createImageData(canvas.width, canvas.height) : null;
    for (let row = 0; row < n; row++) {
      const at = this.position(row);
      if (!(at >= from && at <= to)) continue;
      kept++;
      const c = 3 * Math.min(255, Math.floor((at / 1000) * 256));
      if (regular) {
        const pixel = 4 * (Math.round((y[row] - y0) / stepY) * canvas.width + Math.round((x[row] - x0) / stepX));
        image.data.set([table[c], table[c + 1], table[c + 2], 255], pixel);
      } else {
        pen.fillStyle = `rgb(${table[c]} ${table[c + 1]} ${table[c + 2]})`;
        pen.fillRect((x[row] - x0) / unit[0], (y[row] - y0) / unit[1], width / unit[0], height / unit[1]);
      }
    }
    if (image) pen.putImageData(image, 0, 0);
    const offX = regular ? (width - stepX) / 2 : 0, offY = regular ? (height - stepY) / 2 : 0; // overlapping tiles: their middles
    this.raster = { canvas, x: x0 + offX, y: y0 + offY, width: canvas.width * unit[0], height: canvas.height * unit[1] };
    this.kept = kept;
  }

  // Rows with the highest (or lowest) values.
  extremes(count, lowest) {
    const rows = Array.from({ length: this.tiles.n }, (_, row) => row).filter((row) => Number.isFinite(this.tiles.values[row]));
    const sign = lowest ? 1 : -1;
    rows.sort((a, b) => sign * (this.tiles.values[a] - this.tiles.values[b]) || a - b);
    return rows.slice(0, count);
  }
}

// The tile at a place, the one whose middle is nearest; -1 where there is none.
export function tileAt(tiles, px, py) {
  let best = -1, least = Infinity;
  for (let row = 0; row < tiles.n; row++) {
    const dx = px - tiles.x[row], dy = py - tiles.y[row];
    if (dx < 0 || dy < 0 || dx >= tiles.width || dy >= tiles.height) continue;
    const off = Math.hypot(dx - tiles.width / 2, dy - tiles.height / 2);
    if (off < least) [best, least] = [row, off];
  }
  return best;
}

function range(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (Number.isFinite(value)) { if (value < low) low = value; if (value > high) high = value; }
  return low <= high ? [low, high] : [0, 0];
}

function quantile(values, share) {
  const kept = values.filter(Number.isFinite).sort();
  return kept.length ? kept[Math.ceil(share * (kept.length - 1))] : 0;
}

// Share of the tiles that lie below, ties in the middle.
function ranks(values) {
  const n = values.length, out = new Float32Array(n).fill(NaN);
  const order = Array.from(values.keys()).filter((row) => Number.isFinite(values[row])).sort((a, b) => values[a] - values[b]);
  for (let begin = 0; begin < order.length;) {
    let end = begin;
    while (end < order.length && values[order[end]] === values[order[begin]]) end++;
    const rank = order.length > 1 ? (begin + end - 1) / 2 / (order.length - 1) : 0.5;
    for (let at = begin; at < end; at++) out[order[at]] = rank;
    begin = end;
  }
  return out;
}

// Level-0 pixels per pixel of a small picture: a quarter of a tile, more where that would be too large a picture.
function cell(width, height, tileWidth, tileHeight) {
  const most = 3000;
  return [Math.max(tileWidth / 4, width / most, 1), Math.max(tileHeight / 4, height / most, 1)];
}
