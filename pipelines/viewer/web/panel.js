// The right side: facts, layers, histogram, tiles.

import * as api from "./api.js";
import { isSigned } from "./layer.js";

const at = (name) => document.getElementById(name);

export function number(value) {
  if (!Number.isFinite(value)) return "–";
  return Math.abs(value) >= 1e4 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

export function facts(card, info) {
  at("title").textContent = card ? card.slide_id : "No slide chosen";
  const told = [];
  if (info) told.push(`${info.width} × ${info.height} px` + (info.mpp ? `, ${number(info.mpp[0])} µm/px` : ", µm/px unknown"));
  for (const p of card?.predictions ?? []) {
    const chances = Object.entries(p.p).map(([name, value]) => `${name} ${Number(value).toFixed(3)}`).join(", ");
    told.push(`${p.model}: ${p.pred || "not predicted"} (${chances})${p.label ? `, label ${p.label}` : ""}${p.split ? `, ${p.split}` : ""}`);
  }
  if (card?.warning) told.push(card.warning);
  at("facts").replaceChildren(...told.map((text) => Object.assign(document.createElement("span"), { textContent: text }))
    .flatMap((line) => [line, document.createElement("br")]));
  at("note").value = card?.review.note ?? "";
  for (const button of document.querySelectorAll("[data-status]"))
    button.setAttribute("aria-pressed", Boolean(card) && button.dataset.status !== "" && button.dataset.status === card.review.status);
}

export function quality(slide, card, info) {
  const rows = Object.entries(card?.shares ?? {}).map(([name, share]) => {
    const row = document.createElement("tr");
    row.innerHTML = '<td></td><td class="number"></td>';
    row.children[0].textContent = name === "tissue" ? "tissue, of the slide" : `${name}, of the tissue`;
    row.children[1].textContent = `${(100 * Number(share)).toFixed(1)} %`;
    return row;
  });
  at("shares").replaceChildren(...rows);
  const kinds = (info?.pictures ?? []).filter((kind) => kind !== "thumbnail");
  at("pictures").replaceChildren(...kinds.map((kind) => Object.assign(document.createElement("img"), {
    src: api.picture(slide, kind), alt: kind === "quality" ? "What is wrong with the tissue" : "Tissue outline", loading: "lazy",
  })));
  at("quality").hidden = !rows.length && !kinds.length;
}

// Scores that lie there and are not shown, each with why, and the command that draws it anew.
export function unshown(info) {
  const lines = (info?.unshown ?? []).map((one) => {
    const line = document.createElement("p"), what = one.methods.join(", ").replaceAll("_", " ") || "scores";
    line.append(`Not shown: ${what} of ${one.model}, ${one.why}`);
    if (one.mend) line.append(". Draw anew, then open the slide again: ", Object.assign(document.createElement("code"), { textContent: one.mend }));
    return line;
  });
  at("unshown").replaceChildren(...lines);
  at("unshown").hidden = !lines.length;
}

// One selector per view.
export function layers(info, chosen, changed) {
  const names = (info?.layers ?? []).flatMap((one) => one.methods.map((method) => `${one.model}/${method}`));
  const rows = chosen.map((value, view) => {
    const label = document.createElement("label"), select = document.createElement("select");
    label.className = "row";
    select.className = "layer";
    select.append(new Option("slide alone", ""), ...names.map((name, place) =>
      new Option(`${name.replace("/", " · ").replaceAll("_", " ")}${place < 9 ? `  [${place + 1}]` : ""}`, name)));
    select.value = names.includes(value) ? value : "";
    select.addEventListener("change", () => changed(view, select.value));
    label.append(chosen.length > 1 ? `View ${view + 1} ` : "Scores ", select);
    return label;
  });
  at("layers").replaceChildren(...rows);
  return names;
}

export function histogram(layer, table, from, to) {
  at("values").hidden = !layer;
  if (!layer) return;
  const canvas = at("histogram"), pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const bins = layer.histogram, most = Math.max(...bins, 1), wide = canvas.width / bins.length;
  bins.forEach((count, bin) => {
    const middle = (1000 * (bin + 0.5)) / bins.length, c = 3 * Math.min(255, Math.floor((middle / 1000) * 256));
    pen.fillStyle = middle >= from && middle <= to ? `rgb(${table[c]} ${table[c + 1]} ${table[c + 2]})` : "#d9dde3";
    const high = count ? Math.max(2, (canvas.height - 2) * Math.sqrt(count / most)) : 0; // few high tiles must be seen, too
    pen.fillRect(bin * wide, canvas.height - high, wide - 1, high);
  });
  pen.strokeStyle = "#69707d";
  pen.strokeRect(0.5, 0.5, canvas.width - 1, canvas.height - 1);
  at("values-title").textContent = layer.method.replaceAll("_", " ");
  const [low, high] = layer.ends;
  at("low").textContent = number(low);
  at("high").textContent = number(high);
  at("unit").textContent = layer.unit;
  const value = (place) => number(low + ((high - low) * place) / 1000);
  at("shown").textContent = `${layer.kept} of ${layer.tiles.n} tiles shown: ${value(from)} to ${value(to)} (heights: square root of the count)`;
}

export function extremes(slide, layer, fly) {
  at("extremes").hidden = !layer;
  if (!layer) return;
  for (const [name, lowest] of [["top", false], ["bottom", true]]) {
    const { tiles } = layer;
    const buttons = layer.extremes(8, lowest).map((row) => {
      const button = document.createElement("button"), image = document.createElement("img"), told = document.createElement("span");
      image.src = api.crop(slide, tiles.x[row], tiles.y[row], tiles.width, tiles.height);
      image.alt = "";
      image.loading = "lazy";
      told.textContent = number(tiles.values[row]);
      button.title = `Tile at ${tiles.x[row]}, ${tiles.y[row]}`;
      button.append(image, told);
      button.addEventListener("click", () => fly(tiles, row));
      return button;
    });
    at(name).replaceChildren(...buttons);
  }
}

// A chosen tile: its picture, its values, and a button for each model that may explain it.
export function tile(slide, place, values, info, models, explain) {
  at("tile").hidden = !place;
  if (!place) return;
  const image = Object.assign(document.createElement("img"), { src: api.crop(slide, place.x, place.y, place.width, place.height), alt: "Tile" });
  const body = document.createElement("div"), table = document.createElement("table");
  const um = info.mpp ? `${((place.width * info.mpp[0])).toFixed(0)} µm wide` : "";
  for (const [name, value] of [["x, y", `${place.x}, ${place.y} ${um}`], ...values.map((one) => [one.name, number(one.value)])]) {
    const row = table.insertRow();
    row.insertCell().textContent = name;
    row.insertCell().textContent = value;
  }
  body.append(table);
  for (const one of models) {
    const button = document.createElement("button");
    button.className = "explain";
    button.textContent = `Grad-CAM, ${one.model}`;
    button.addEventListener("click", () => explain(one, button));
    body.append(button);
  }
  const told = Object.assign(document.createElement("p"), { id: "cam" });
  at("tile-body").replaceChildren(image, body, told);
}

export function colorChoices(names, layer, chosen) {
  const select = at("colors");
  const own = layer && isSigned(layer.method) && !layer.unit.startsWith("rank") ? "RdBu_r" : "viridis";
  select.replaceChildren(new Option(`as the method (${own})`, ""), ...names.map((name) => new Option(name, name)));
  select.value = names.includes(chosen) ? chosen : "";
}
