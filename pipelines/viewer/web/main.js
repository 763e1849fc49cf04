// Puts the parts together: what is chosen, what is drawn, what keys do.

import * as api from "./api.js";
import { Layer, isSigned, tileAt } from "./layer.js";
import * as list from "./list.js";
import { Pane } from "./pane.js";
import * as panel from "./panel.js";
import { keep, keepNow, read, state } from "./state.js";

const at = (name) => document.getElementById(name);
const MOST_PANES = 4, EVERY = 4000;
const panes = [], tables = new Map();
let about = {}, info = null, layers = [], gridTiles = null, outlines = {}, cams = [], chosen = null, leader = null, turn = 0;

function say(words) {
  at("message").hidden = !words;
  at("message").textContent = words ?? "";
}

// Let something fail in the open: the message stays until the next thing succeeds.
async function trying(work) {
  try {
    return await work();
  } catch (error) {
    say(error.message);
    if (!(error instanceof api.Refused)) throw error;
    return undefined;
  }
}

// -- views

const events = {
  entered: (pane) => { leader = pane; },
  moved: (pane) => {
    if (pane !== (panes.includes(leader) ? leader : panes[0]) || !pane.item()) return;
    state.view = pane.view();
    for (const other of panes) if (other !== pane && other.item()) other.look(state.view, true);
    keep();
  },
  opened: (pane) => {
    if (state.view) pane.look(state.view, true);
    pane.root.dataset.open = state.slide;
    draw();
  },
  failed: (words) => say(words),
  clicked: ([x, y]) => pick(x, y),
};

function setPanes(count) {
  while (panes.length > count) panes.pop().destroy();
  while (panes.length < count) {
    panes.push(new Pane(at("panes"), events));
    if (info) panes.at(-1).open(state.slide, info);
  }
  at("panes").dataset.count = count;
}

async function table(name) {
  if (!tables.has(name)) tables.set(name, await api.colors(name));
  return tables.get(name);
}

const tableOf = (layer) =>
  state.colors || (isSigned(layer.method) && state.scale !== "rank" ? "RdBu_r" : "viridis");

async function recolor() {
  for (const layer of layers) if (layer) layer.color(await table(tableOf(layer)), state.from, state.to);
  draw();
  const first = layers.find(Boolean);
  panel.histogram(first, first && tables.get(tableOf(first)), state.from, state.to);
}

function rescale() {
  for (const layer of layers) layer?.rescale(state.scale);
  panel.colorChoices(about.colors, layers.find(Boolean), state.colors);
}

function draw() {
  panes.forEach((pane, view) => {
    const layer = layers[view], name = state.layers[view] ?? "";
    pane.show({
      layer,
      opacity: state.opacity,
      grid: state.grid ? gridTiles : null,
      tissue: state.tissue ? outlines.tissue : null,
      truth: state.truth ? outlines.truth : null,
      tile: chosen,
      cam: cams.find((one) => one.x === chosen?.x && one.y === chosen?.y && (!name || name.startsWith(`${one.model}/`))),
      label: name ? label(name) : panes.length > 1 ? "slide alone" : "",
    });
  });
  document.body.dataset.drawn = Number(document.body.dataset.drawn ?? 0) + 1;
}

function label(name) {
  const [model, method] = name.split("/");
  const scores = info?.layers.find((one) => one.model === model);
  const told = `${model} · ${method.replaceAll("_", " ")}`;
  if (info?.unshown.some((one) => one.model === model && one.methods.includes(method))) return `${told}: not shown, see Layers`;
  if (info && !scores?.methods.includes(method)) return `${told}: none for this slide`;
  return scores?.target ? `${told} for ${scores.target}` : told;
}

async function loadLayers() {
  const mine = ++turn, slide = state.slide;
  panel.unshown(info);
  const known = new Set(panel.layers(info, state.layers, (view, value) => choose(view, value)));
  const found = await trying(() => Promise.all(state.layers.map(async (name) => {
    if (!known.has(name)) return null;
    const [model, method] = name.split("/");
    return new Layer(model, method, await api.scores(slide, model, method));
  })));
  if (mine !== turn || !found) return; // another slide or layer was chosen meanwhile
  layers = found;
  rescale();
  await recolor();
  panel.extremes(slide, layers.find(Boolean), fly);
  showTile();
}

function choose(view, value) {
  state.layers[view] = value;
  say("");
  keep();
  loadLayers();
}

function views(step) {
  const count = Math.min(MOST_PANES, Math.max(1, state.layers.length + step));
  const names = (info?.layers ?? []).flatMap((one) => one.methods.map((method) => `${one.model}/${method}`));
  while (state.layers.length > count) state.layers.pop();
  while (state.layers.length < count) state.layers.push(names.find((name) => !state.layers.includes(name)) ?? "");
  setPanes(count);
  keep();
  loadLayers();
}

// -- slides

async function openSlide(slide, anew = true) {
  const mine = ++turn;
  state.slide = slide;
  if (anew) { state.view = null; state.tile = null; }
  [info, layers, gridTiles, outlines, cams, chosen] = [null, [], null, {}, [], null];
  for (const pane of panes) pane.close();
  say("");
  list.mark(slide);
  panel.facts(list.card(slide), null);
  panel.histogram(null);
  panel.extremes(slide, null);
  panel.unshown(null);
  panel.tile(slide, null);
  panel.quality(slide, list.card(slide), null);
  keep();
  const told = await trying(() => api.info(slide));
  if (mine !== turn || !told) return;
  info = { ...told, side: about.side };
  at("truth-row").hidden = !info.outlines.includes("truth");
  panel.facts(list.card(slide), info);
  panel.quality(slide, list.card(slide), info);
  for (const pane of panes) pane.open(slide, info);
  await Promise.all([loadLayers(), ask("grid"), ask("tissue"), ask("truth")]);
  if (state.tile) await pickPlace(...state.tile);
}

// What a switch needs is asked for when it is on.
async function ask(what) {
  const slide = state.slide;
  if (!state[what] || !info) return;
  if (what === "grid" && !gridTiles) {
    const found = await trying(() => api.grid(slide));
    if (slide === state.slide) gridTiles = found ?? null;
  } else if (what !== "grid" && !outlines[what] && info.outlines.includes(what)) {
    const found = await trying(() => api.outlines(slide, what));
    if (slide === state.slide) outlines[what] = found;
  }
  draw();
}

function toggle(what) {
  state[what] = !state[what];
  at(what).checked = state[what];
  keep();
  ask(what);
  draw();
}

// -- tiles

async function tilesNow() {
  const first = layers.find(Boolean)?.tiles;
  if (first) return first;
  if (!gridTiles && info) gridTiles = (await trying(() => api.grid(state.slide))) ?? null;
  return gridTiles;
}

async function pick(x, y) {
  const tiles = await tilesNow();
  const row = tiles ? tileAt(tiles, x, y) : -1;
  select(tiles, row);
}

async function pickPlace(x, y) {
  const tiles = await tilesNow();
  if (tiles) select(tiles, tiles.x.findIndex((value, row) => value === x && tiles.y[row] === y));
}

function select(tiles, row) {
  chosen = row < 0 ? null : { x: tiles.x[row], y: tiles.y[row], width: tiles.width, height: tiles.height };
  state.tile = chosen && [chosen.x, chosen.y];
  keep();
  showTile();
  draw();
}

function showTile() {
  const values = chosen ? layers.filter(Boolean).map((layer) => {
    const row = layer.tiles.x.findIndex((x, place) => x === chosen.x && layer.tiles.y[place] === chosen.y);
    return { name: layer.method.replaceAll("_", " "), value: row < 0 ? NaN : layer.tiles.values[row] };
  }) : [];
  panel.tile(state.slide, chosen, values, info, about.gradcam ? info?.layers ?? [] : [], explain);
}

function fly(tiles, row) {
  select(tiles, row);
  const middle = [tiles.x[row] + tiles.width / 2, tiles.y[row] + tiles.height / 2];
  leader = panes[0];
  panes[0].look([...middle, 5 * tiles.width], false);
}

// -- Grad-CAM

async function explain(one, button) {
  const place = chosen, slide = state.slide;
  button.disabled = true;
  at("cam").textContent = "Looking back through the network …";
  try {
    const map = await api.gradcam(slide, one.model, place.x, place.y, one.target);
    if (slide !== state.slide) return;
    cams = cams.filter((known) => known.x !== place.x || known.y !== place.y || known.model !== one.model);
    cams.push({ ...place, model: one.model, class: map.class, map });
    const mine = cams.filter((known) => known.model === one.model && known.class === map.class);
    const size = Math.max(...mine.flatMap((known) => known.map.values.map(Math.abs))) || 1;
    const colors = await table("RdBu_r");
    for (const known of mine) known.canvas = paint(known.map, size, colors); // one scale for all maps of a slide
    at("cam").textContent = `Grad-CAM for ${map.class}: red speaks for it, blue against; ±${panel.number(size)}, the same for all tiles ` +
      `looked at on this slide (${mine.length}).`;
    draw();
  } catch (error) {
    at("cam").textContent = error.message;
    at("cam").className = "bad";
  } finally {
    button.disabled = false;
  }
}

function paint(map, size, colors) {
  const canvas = Object.assign(document.createElement("canvas"), { width: map.columns, height: map.rows });
  const pen = canvas.getContext("2d"), image = pen.createImageData(map.columns, map.rows);
  map.values.forEach((value, pixel) => {
    const c = 3 * Math.min(255, Math.max(0, Math.floor(128 * (1 + value / size))));
    image.data.set([colors[c], colors[c + 1], colors[c + 2], 255], 4 * pixel);
  });
  pen.putImageData(image, 0, 0);
  return canvas;
}

// -- review

async function decide(status, note) {
  const slide = state.slide;
  if (!slide || !list.card(slide)) return;
  const review = await trying(() => api.decide(slide, status, note));
  if (!review) return;
  say("");
  list.decided(slide, review);
  if (slide === state.slide) panel.facts(list.card(slide), info);
}

function step(by) {
  const slide = list.next(state.slide, by);
  if (slide && slide !== state.slide) openSlide(slide);
}

const KEYS = {
  a: () => decide("accept"), r: () => decide("reject"), f: () => decide("flag"), u: () => decide(""),
  n: () => step(1), p: () => step(-1), t: () => toggle("tissue"), g: () => toggle("grid"), y: () => toggle("truth"),
  h: () => { leader = panes[0]; panes[0].item() && panes[0].home(); }, "+": () => views(1), "-": () => views(-1),
  "/": () => at("filter").focus(),
};

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input[type=search], #note, select");
  if (event.key === "Escape") { event.target.blur(); return; }
  if (typing) return;
  const digit = /^[0-9]$/.test(event.key) ? Number(event.key) : -1;
  if (digit >= 0 && info) {
    const names = info.layers.flatMap((one) => one.methods.map((method) => `${one.model}/${method}`));
    if (digit <= names.length) choose(0, digit ? names[digit - 1] : "");
  } else if (KEYS[event.key.toLowerCase()]) {
    event.preventDefault();
    KEYS[event.key.toLowerCase()]();
  }
}

// -- beginning

function controls() {
  for (const what of ["tissue", "grid", "truth"]) {
    at(what).checked = state[what];
    at(what).addEventListener("change", () => { toggle(what); at(what).blur(); });
  }
  for (const name of ["opacity", "from", "to"]) {
    at(name).value = state[name];
    at(name).addEventListener("input", () => {
      state[name] = Number(at(name).value);
      at("opacity-shown").textContent = `${state.opacity} %`;
      keep();
      if (name === "opacity") draw();
      else recolor();
    });
  }
  at("opacity-shown").textContent = `${state.opacity} %`;
  at("scale").value = state.scale;
  at("scale").addEventListener("change", () => { state.scale = at("scale").value; keep(); rescale(); recolor(); });
  at("colors").addEventListener("change", () => { state.colors = at("colors").value; keep(); recolor(); });
  at("add").addEventListener("click", () => views(1));
  at("remove").addEventListener("click", () => views(-1));
  at("note").addEventListener("keydown", (event) => {
    if (event.key === "Enter") { decide(list.card(state.slide)?.review.status ?? "", at("note").value); at("note").blur(); }
  });
  for (const button of document.querySelectorAll("[data-status]"))
    button.addEventListener("click", () => { decide(button.dataset.status); button.blur(); });
  document.addEventListener("keydown", key);
  window.addEventListener("pagehide", keepNow);
  window.addEventListener("hashchange", () => location.reload());
}

// A job may go on while it is looked at.
async function watch() {
  const fresh = await trying(() => api.slides());
  if (fresh) {
    const before = list.card(state.slide);
    list.update(fresh);
    list.mark(state.slide);
    const now = list.card(state.slide);
    if (info && now && before?.status !== now.status) {
      const told = await trying(() => api.info(state.slide));
      if (told) { info = { ...told, side: about.side }; loadLayers(); }
    }
    if (now && document.activeElement !== at("note")) panel.facts(now, info);
  }
  setTimeout(watch, EVERY);
}

async function begin() {
  read();
  about = await trying(() => api.about());
  if (!about) return;
  at("name").textContent = about.name;
  document.title = `${about.name} · slidemil`;
  controls();
  list.setUp((slide) => openSlide(slide));
  setPanes(state.layers.length);
  await watch();
  const known = list.card(state.slide);
  if (state.slide && !known) say(`There is no slide ${state.slide} here.`);
  const first = known ? state.slide : list.all()[0]?.slide_id;
  if (first) await openSlide(first, !known);
  document.body.dataset.ready = "yes";
}

begin();
