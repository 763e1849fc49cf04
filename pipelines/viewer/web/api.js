// Everything that is asked of the server. All addresses are relative: they keep the token, and any proxy's prefix.

export class Refused extends Error {}

async function answer(response) {
  if (response.ok) return response;
  let words = `${response.status} ${response.statusText}`;
  try { words = (await response.json()).error || words; } catch { /* no JSON: the status has to do */ }
  throw new Refused(words);
}

async function ask(address, options) {
  try {
    return await answer(await fetch(address, options));
  } catch (error) {
    if (error instanceof Refused || error.name === "AbortError") throw error;
    throw new Refused("The server does not answer: does `slidemil serve` still run?");
  }
}

const part = encodeURIComponent;
export const slideAt = (slide) => `slides/${part(slide)}`;
export const json = async (address, options) => (await ask(address, options)).json();
export const bytes = async (address) => (await ask(address)).arrayBuffer();

export const about = () => json("api/about");
export const info = (slide) => json(`${slideAt(slide)}/info`);
export const outlines = (slide, kind) => json(`${slideAt(slide)}/outlines/${kind}`);
export const colors = async (name) => new Uint8Array(await bytes(`colors/${part(name)}`));
export const grid = async (slide) => unpack(await bytes(`${slideAt(slide)}/grid`));
export const scores = async (slide, model, method) =>
  unpack(await bytes(`${slideAt(slide)}/scores/${part(model)}/${part(method)}`));
export const picture = (slide, kind) => `${slideAt(slide)}/pictures/${kind}.jpg`;
export const crop = (slide, x, y, w, h) => `${slideAt(slide)}/crop/${x}_${y}_${w}_${h}.jpg`;
export const gradcam = (slide, model, x, y, target) =>
  json(`${slideAt(slide)}/gradcam/${part(model)}/${x}_${y}${target ? `?class=${part(target)}` : ""}`);

let tag = "", list = null;
// The list of slides, null where nothing has changed since it was asked last.
export async function slides() {
  const response = await fetch("api/slides", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" })
    .catch(() => { throw new Refused("The server does not answer: does `slidemil serve` still run?"); });
  if (response.status === 304) return null;
  list = (await (await answer(response)).json()).slides;
  tag = response.headers.get("etag") || "";
  return list;
}

export const decide = (slide, status, note) => json(`${slideAt(slide)}/review`, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(note === undefined ? { status } : { status, note }),
});

// Tiles and maybe values, as `packed.py` writes them.
function unpack(buffer) {
  const [n, width, height, stepX, stepY] = new Int32Array(buffer, 0, 6);
  const at = 24;
  return {
    n, width, height, stepX, stepY,
    x: new Int32Array(buffer, at, n),
    y: new Int32Array(buffer, at + 4 * n, n),
    values: buffer.byteLength > at + 8 * n ? new Float32Array(buffer, at + 8 * n, n) : null,
  };
}
