// One view: the slide by OpenSeadragon, and a canvas over it with colors, grid and outlines, drawn in level-0 pixels.

import * as api from "./api.js";

const LEAST_GRID = 5; // px on the screen under which grid lines would be a grey mass

export class Pane {
  constructor(parent, events) {
    this.root = document.createElement("div");
    this.root.className = "pane";
    this.root.innerHTML = '<div class="image"></div><canvas class="overlay"></canvas><span class="label"></span>' +
      '<div class="bar" hidden><i></i><span></span></div>';
    parent.append(this.root);
    [this.image, this.canvas, this.label, this.bar] = this.root.children;
    this.events = events;
    this.drawn = {};
    this.info = null;
    this.viewer = OpenSeadragon({
      element: this.image, showNavigationControl: false, drawer: "canvas", animationTime: 0.4, imageLoaderLimit: 8,
      maxZoomPixelRatio: 4, visibilityRatio: 0.2, minZoomImageRatio: 0.7, gestureSettingsMouse: { clickToZoom: false },
      keyboardNavEnabled: false, showNavigator: false,
    });
    this.viewer.innerTracker.keyDownHandler = null;
    this.viewer.innerTracker.keyHandler = null;
    for (const name of ["update-viewport", "resize", "open", "animation"]) this.viewer.addHandler(name, () => this.draw());
    this.viewer.addHandler("viewport-change", () => events.moved(this));
    this.viewer.addHandler("open", () => events.opened(this));
    this.viewer.addHandler("open-failed", (event) => events.failed(event.message));
    this.viewer.addHandler("tile-load-failed", () => { this.root.dataset.lost = Number(this.root.dataset.lost ?? 0) + 1; });
    this.viewer.addHandler("tile-loaded", () => { this.root.dataset.tiles = Number(this.root.dataset.tiles ?? 0) + 1; });
    this.viewer.addHandler("canvas-click", (event) => {
      if (event.quick && this.item()) events.clicked(this.toImage(event.position));
    });
    this.root.addEventListener("pointerenter", () => events.entered(this));
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  item() { return this.viewer.world.getItemAt(0); }

  open(slide, info) {
    this.info = info;
    this.root.dataset.tiles = 0;
    this.viewer.open({
      width: info.width, height: info.height, tileSize: info.side, tileOverlap: 0, minLevel: 0, maxLevel: info.top,
      getTileUrl: (level, column, row) => `${api.slideAt(slide)}/tiles/${level}/${column}_${row}.jpg?v=${info.version}`,
    });
  }

  close() {
    this.info = null;
    this.drawn = {};
    this.viewer.close();
    this.draw();
  }

  destroy() {
    this.viewer.destroy();
    this.root.remove();
  }

  // [x, y of the middle, width of what is seen], level-0 px.
  view() {
    const seen = this.viewer.viewport.getBounds(), size = this.info.width;
    return [(seen.x + seen.width / 2) * size, (seen.y + seen.height / 2) * size, seen.width * size];
  }

  look([x, y, width], at_once) {
    const size = this.info.width, wide = width / size;
    const high = wide / this.viewer.viewport.getAspectRatio();
    const seen = new OpenSeadragon.Rect(x / size - wide / 2, y / size - high / 2, wide, high);
    this.viewer.viewport.fitBounds(seen, at_once);
  }

  home() { this.viewer.viewport.goHome(); }

  // What lies over the slide: {layer, opacity, grid, tissue, truth, tile, cam, label}.
  show(drawn) {
    this.drawn = drawn;
    this.label.textContent = drawn.label ?? "";
    this.label.hidden = !drawn.label;
    this.draw();
  }

  scale() {
    const item = this.item();
    const zero = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const one = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(this.info.width, 0));
    return { x: zero.x, y: zero.y, px: (one.x - zero.x) / this.info.width };
  }

  toImage(point) {
    const { x, y, px } = this.scale();
    return [(point.x - x) / px, (point.y - y) / px];
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(this.root.clientWidth * ratio), height = Math.round(this.root.clientHeight * ratio);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const pen = this.canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    this.bar.hidden = true;
    if (!this.info || !this.item()) return;
    const { x, y, px } = this.scale();
    pen.setTransform(px * ratio, 0, 0, px * ratio, x * ratio, y * ratio);
    const { layer, opacity, grid, tissue, truth, tile, cam } = this.drawn;
    if (layer?.raster) {
      pen.globalAlpha = opacity / 100;
      pen.imageSmoothingEnabled = false;
      const { canvas, x: left, y: top, width: wide, height: high } = layer.raster;
      pen.drawImage(canvas, left, top, wide, high);
      pen.globalAlpha = 1;
    }
    if (cam) {
      pen.clearRect(cam.x, cam.y, cam.width, cam.height); // two colors, one over the other, would tell neither
      pen.imageSmoothingEnabled = true;
      pen.globalAlpha = Math.max(0.35, opacity / 100);
      pen.drawImage(cam.canvas, cam.x, cam.y, cam.width, cam.height);
      pen.globalAlpha = 1;
    }
    if (grid) drawGrid(pen, grid, px, this.viewer.viewport, this.info);
    if (tissue) outline(pen, tissue, "#00805c", px);
    if (truth) outline(pen, truth, "#d55e00", px);
    if (tile) {
      pen.lineWidth = 3 / px;
      pen.strokeStyle = "#ffffff";
      pen.strokeRect(tile.x, tile.y, tile.width, tile.height);
      pen.lineWidth = 1.5 / px;
      pen.strokeStyle = "#0072b2";
      pen.strokeRect(tile.x, tile.y, tile.width, tile.height);
    }
    this.drawBar(px);
  }

  drawBar(px) {
    if (!this.info.mpp) return;
    const um = this.info.mpp[0] / px, longest = 140 * um;
    const power = 10 ** Math.floor(Math.log10(longest));
    const nice = [5, 2, 1].map((step) => step * power).find((length) => length <= longest * (1 + 1e-9)) ?? power;
    this.bar.hidden = false;
    this.bar.firstElementChild.style.width = `${nice / um}px`;
    this.bar.lastElementChild.textContent = nice >= 1000 ? `${nice / 1000} mm` : `${Number(nice.toPrecision(3))} µm`;
  }
}

function drawGrid(pen, grid, px, viewport, info) {
  if (grid.width * px < LEAST_GRID) return;
  const seen = viewport.getBounds(true), size = info.width;
  const [left, top] = [seen.x * size - grid.width, seen.y * size - grid.height];
  const [right, bottom] = [(seen.x + seen.width) * size, (seen.y + seen.height) * size];
  pen.beginPath();
  for (let row = 0; row < grid.n; row++) {
    const x = grid.x[row], y = grid.y[row];
    if (x >= left && x <= right && y >= top && y <= bottom) pen.rect(x, y, grid.width, grid.height);
  }
  pen.lineWidth = 1 / px;
  pen.strokeStyle = "rgb(34 38 46 / 60%)";
  pen.stroke();
}

function outline(pen, polygons, color, px) {
  pen.beginPath();
  for (const ring of polygons.flat()) {
    ring.forEach(([x, y], at) => (at ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.closePath();
  }
  pen.lineJoin = "round";
  for (const [width, shade] of [[4, "rgb(255 255 255 / 80%)"], [2, color]]) {
    pen.lineWidth = width / px;
    pen.strokeStyle = shade;
    pen.stroke();
  }
}
