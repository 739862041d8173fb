// Pieces that every view uses: asking the server, making elements, the card of an entry.
// Texts of a bank only ever become text nodes, never markup.

const TINY = 160; // pixels: pictures below this are enlarged without smoothing

/** Ask the server. Throws an Error whose message is for people. */
export async function ask(path, values = {}, body = undefined, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value !== "" && value !== null && value !== undefined) query.set(name, value);
  }
  let reply;
  try {
    reply = await fetch(`${path}?${query}`, { method: body ? "POST" : "GET", body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("No answer: the server of this page was stopped. Start it again.");
  }
  const found = await reply.json();
  if (!reply.ok) {
    throw Object.assign(new Error(found.error), { status: reply.status });
  }
  return found;
}

/** An element with properties and children; strings become text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

/** The address hash for a state: only what differs from the start page. */
export function address(state) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value) query.set(name, value);
  }
  return `#${query}`;
}

/** An entry's picture, or its words where there is none. */
export function picture(entry, size) {
  const words = () => make("span", { className: "words" }, entry.text || entry.id);
  if (!entry.picture) return words();
  const image = make("img", { alt: "", loading: "lazy", decoding: "async" });
  image.onload = () => image.classList.toggle("small", image.naturalWidth < TINY);
  image.onerror = () => image.replaceWith(words());
  image.src = `image/${encodeURIComponent(entry.image_hash)}?size=${size}`;
  return image;
}

/** A link to an entry, as it stands in contact sheets. */
export function card(entry, href) {
  const link = make("a", { className: "card", href });
  link.append(make("div", { className: "frame" }, picture(entry, "small")));
  if (entry.picture) link.append(make("p", {}, entry.text));
  if (entry.score !== null) link.append(similarity(entry.score));
  return link;
}

/** A similarity as a bar and a number. */
export function similarity(score) {
  const filled = make("b");
  filled.style.width = `${Math.max(0, Math.min(1, score)) * 100}%`;
  const bar = make("i", { ariaHidden: "true" }, filled);
  return make("div", { className: "score", title: "similarity" }, bar, score.toFixed(3));
}

/** Whole numbers as people read them. */
export const count = (n, what, many = `${what}s`) =>
  `${n.toLocaleString("en")} ${n === 1 ? what : many}`;
