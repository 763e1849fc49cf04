// What is looked at, kept in the address behind `#`: a link or a reload shows the same.

const START = {
  slide: "", layers: [""], opacity: 60, colors: "", scale: "own", from: 0, to: 1000,
  tissue: false, grid: false, truth: false, view: null, tile: null,
};

export const state = { ...START, layers: [...START.layers] };

export function read() {
  const told = new URLSearchParams(location.hash.slice(1));
  const number = (name, low, high, otherwise) => {
    const value = Number(told.get(name) ?? NaN);
    return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise;
  };
  state.slide = told.get("slide") ?? "";
  state.layers = told.has("layer") ? told.getAll("layer").slice(0, 4) : [""];
  state.opacity = number("opacity", 0, 100, START.opacity);
  state.colors = told.get("colors") ?? "";
  state.scale = ["raw", "rank"].includes(told.get("scale")) ? told.get("scale") : "own";
  state.from = number("from", 0, 1000, 0);
  state.to = number("to", 0, 1000, 1000);
  for (const name of ["tissue", "grid", "truth"]) state[name] = told.get(name) === "1";
  const view = (told.get("view") ?? "").split(",").map(Number);
  state.view = view.length === 3 && view.every(Number.isFinite) && view[2] > 0 ? view : null;
  const tile = (told.get("tile") ?? "").split(",").map(Number);
  state.tile = told.has("tile") && tile.length === 2 && tile.every(Number.isInteger) ? tile : null;
}

let waiting = 0;
export function keep() {
  clearTimeout(waiting);
  waiting = setTimeout(keepNow, 150);
}

export function keepNow() {
  clearTimeout(waiting);
  const told = new URLSearchParams();
  if (state.slide) told.set("slide", state.slide);
  if (state.layers.some(Boolean) || state.layers.length > 1) for (const layer of state.layers) told.append("layer", layer);
  for (const name of ["opacity", "colors", "scale", "from", "to"])
    if (state[name] !== START[name]) told.set(name, state[name]);
  for (const name of ["tissue", "grid", "truth"]) if (state[name]) told.set(name, "1");
  if (state.view) told.set("view", state.view.map((value) => Number(value.toPrecision(7))).join(","));
  if (state.tile) told.set("tile", state.tile.join(","));
  history.replaceState(null, "", `#${told}`);
}
