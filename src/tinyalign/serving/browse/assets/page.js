// The page: what is shown follows the address, so that going back, reloading and bookmarks work.
import { KeyMap, mapNote } from "./map.js";
import { address, ask, card, count, make, picture, similarity } from "./parts.js";

const LARGEST = 32 << 20; // bytes of a picture to search by, as the server takes it
const NEIGHBOURS = 24;
const $ = (id) => document.getElementById(id);

let bank = null; // facts of /api/bank
let image = null; // the picture to search by; no address can hold it
let shown = ""; // what the sheet shows now, so that opening an entry asks nothing again
let marks = []; // rows that the last search found
let pointedOut = []; // the row of an entry that is to be seen on the map
let mapped = ""; // the projection that the map shows
let lastOpened = null;
const scores = new Map(); // id -> similarity in the last search
let running = new AbortController();

const keyMap = new KeyMap($("canvas"), $("tip"), $("legend"), {
  open: (entry) => go({ id: entry.id }),
  failed: (error) => fail(error),
});

function state() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

function go(changes) {
  location.hash = address({ ...state(), ...changes });
}

function say(message) {
  $("status").textContent = message;
}

function fail(error) {
  if (error.name !== "AbortError") $("problem").textContent = error.message;
}

// -- the head -----------------------------------------------------------------------------------

async function start() {
  try {
    bank = await ask("api/bank");
  } catch (error) {
    fail(error);
    return;
  }
  document.title = `${bank.name} – memory bank`;
  $("name").textContent = bank.name;
  const names = Object.keys(bank.sources);
  const keys = `${bank.key_kind} keys of ${bank.key_dim} numbers`;
  $("facts").textContent =
    `${count(bank.count, "entry", "entries")} · ${count(names.length, "source")} · ${keys}`;
  $("source").hidden = names.length < 2;
  for (const name of names) {
    const label = `${name || "(no name)"} (${bank.sources[name].toLocaleString("en")})`;
    $("source").append(make("option", { value: name }, label));
  }
  const titles = { pca: "PCA", umap: "UMAP" };
  $("method").append(...bank.map_methods.map((m) => make("option", { value: m }, titles[m])));
  $("method-label").hidden = bank.map_methods.length < 2;
  await render();
}

async function render() {
  if (!bank) return;
  const now = state();
  $("problem").textContent = "";
  const onMap = now.view === "map";
  $("sheet").hidden = onMap;
  $("map").hidden = !onMap;
  for (const [id, here] of [["to-sheet", !onMap], ["to-map", onMap]]) {
    if (here) $(id).setAttribute("aria-current", "page");
    else $(id).removeAttribute("aria-current");
  }
  $("to-sheet").href = address({ ...now, view: "", id: "" });
  $("to-map").href = address({ ...now, view: "map", id: "" });
  if (document.activeElement !== $("text")) $("text").value = now.text || "";
  $("source").value = now.source || "";
  $("order").value = now.order || "oldest";
  await Promise.all([showSheet(now), onMap ? showMap() : null, showEntry(now)]);
}

// -- entries and what a search found ------------------------------------------------------------

async function showSheet(now) {
  const { text = "", source = "", order = "oldest", page = "1" } = now;
  const wanted = JSON.stringify([text, source, order, page, image && image.name, image && image.size]);
  if (wanted === shown) return;
  shown = wanted;
  running.abort();
  running = new AbortController();
  const searching = text || image;
  $("order-label").hidden = searching;
  $("clear").hidden = !searching;
  $("clear").href = address({ source });
  $("pager").hidden = true;
  try {
    await (searching ? search(text, source) : browse(page, source, order));
  } catch (error) {
    if (error.name === "AbortError") return;
    shown = "";
    $("cards").replaceChildren();
    $("heading").textContent = "";
    say("");
    fail(error);
  }
}

async function browse(page, source, order) {
  const late = setTimeout(() => say("Loading …"), 400);
  const values = { page, source, order };
  const found = await ask("api/entries", values, undefined, running.signal)
    .finally(() => clearTimeout(late));
  scores.clear();
  mark([], []);
  $("heading").textContent = count(found.total, "entry", "entries") + (source ? ` from ${source}` : "");
  fill($("cards"), found.entries);
  say(found.total ? "" : "The bank is empty.");
  $("pager").hidden = found.pages < 2;
  $("page").value = found.page;
  $("page").max = found.pages;
  $("pages").textContent = `of ${found.pages.toLocaleString("en")}`;
  for (const [id, to] of [["back", found.page - 1], ["on", found.page + 1]]) {
    if (to < 1 || to > found.pages) $(id).removeAttribute("href");
    else $(id).href = address({ ...state(), page: to, id: "" });
  }
}

async function search(text, source) {
  const first = image && !bank.vision_loaded;
  say(first ? `Loading the vision encoder ${bank.vision || ""} for the first picture …` : "Searching …");
  const found = await ask("api/search", { text, source }, image || undefined, running.signal);
  if (image) bank.vision_loaded = true;
  const by = [text && `“${text}”`, image && "the picture"].filter(Boolean).join(" and ");
  $("heading").textContent = `Nearest to ${by}` + (source ? `, from ${source}` : "");
  scores.clear();
  found.entries.forEach((entry) => scores.set(entry.id, entry.score));
  mark(found.entries.map((entry) => entry.row), []);
  fill($("cards"), found.entries);
  say(found.unrelated
    ? "No key is anything like this search, so these are just some entries."
    : count(found.entries.length, "entry", "entries") + ", the most similar first; ringed on the map.");
}

function fill(place, entries) {
  place.replaceChildren(
    ...entries.map((entry) => {
      const link = card(entry, address({ ...state(), id: entry.id }));
      link.onclick = (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault(); // the address may have changed since the card was made
        go({ id: entry.id });
      };
      return link;
    }),
  );
}

// -- one entry ----------------------------------------------------------------------------------

async function showEntry(now) {
  const dialog = $("entry");
  if (!now.id) {
    lastOpened = null;
    if (dialog.open) dialog.close();
    return;
  }
  if (lastOpened === now.id) return;
  lastOpened = now.id;
  try {
    const entry = await ask("api/entry", { id: now.id });
    if (lastOpened !== now.id) return;
    detail(entry);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    await nearest(now.id);
  } catch (error) {
    lastOpened = null;
    if (dialog.open) dialog.close();
    fail(error);
  }
}

function detail(entry) {
  $("entry-picture").replaceChildren(picture(entry, "large"));
  $("entry-text").textContent = entry.text;
  const facts = [
    ["Similarity", scores.has(entry.id) ? similarity(scores.get(entry.id)) : ""],
    ["Instruction", entry.instruction],
    ["Source", entry.source],
    ["Id", entry.id],
    ["Image", entry.image_ref],
    ["Image hash", entry.image_hash],
    ["Row", String(entry.row)],
  ];
  $("entry-facts").replaceChildren(
    ...facts.filter(([, value]) => value).flatMap(([name, value]) => [
      make("dt", {}, name), make("dd", {}, value),
    ]),
  );
  $("entry-on-map").onclick = (event) => {
    event.preventDefault();
    mark(marks, [entry.row]);
    go({ view: "map", id: "" });
  };
}

async function nearest(id) {
  $("near").replaceChildren();
  $("entry-status").textContent = "Searching …";
  const images = $("others").checked ? "other" : "all";
  try {
    const found = await ask("api/neighbours", { id, k: NEIGHBOURS, images });
    if (lastOpened !== id) return;
    fill($("near"), found.entries);
    $("entry-status").textContent = found.entries.length ? "" : "There is no other entry.";
  } catch (error) {
    $("entry-status").textContent = error.message;
  }
}

// -- the map ------------------------------------------------------------------------------------

function mark(found, one) {
  [marks, pointedOut] = [found, one];
  keyMap.mark([...marks, ...pointedOut]);
}

async function showMap() {
  const method = $("method").value;
  if (mapped === method) {
    keyMap.draw();
    return;
  }
  mapped = method;
  $("map-note").textContent = method === "umap"
    ? "Drawing the map; UMAP takes a minute or so …"
    : "Drawing the map …";
  try {
    const data = await ask("api/map", { method });
    if (mapped !== method) return;
    keyMap.show(data);
    $("map-note").textContent = mapNote(data);
  } catch (error) {
    mapped = "";
    $("map-note").textContent = "";
    fail(error);
  }
}

// -- the picture to search by -------------------------------------------------------------------

function take(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) {
    fail(new Error(`${file.name} is not a picture.`));
    return;
  }
  if (file.size > LARGEST) {
    fail(new Error(`${file.name} has more than ${LARGEST >> 20} MB; make it smaller.`));
    return;
  }
  forget();
  image = file;
  $("preview").src = URL.createObjectURL(file);
  $("chosen").hidden = false;
  submit();
}

function forget() {
  if (image) URL.revokeObjectURL($("preview").src);
  image = null;
  $("file").value = "";
  $("preview").removeAttribute("src");
  $("chosen").hidden = true;
}

function submit() {
  shown = ""; // the same search again asks again
  const before = location.hash;
  const { order, view } = state();
  location.hash = address({ order, view, text: $("text").value.trim(), source: $("source").value });
  if (location.hash === before) render();
}

$("search").onsubmit = (event) => {
  event.preventDefault();
  submit();
};
$("pick").onclick = () => $("file").click();
$("file").onchange = () => take($("file").files[0]);
$("forget").onclick = () => {
  forget();
  submit();
};
$("clear").onclick = () => forget();
$("source").onchange = submit;
$("order").onchange = () => go({ order: $("order").value, page: "" });
$("page").onchange = () => go({ page: $("page").value });
$("method").onchange = () => showMap();
$("colour").onchange = () => keyMap.by($("colour").value);
$("closer").onclick = () => keyMap.scale(1.6);
$("farther").onclick = () => keyMap.scale(1 / 1.6);
$("whole").onclick = () => keyMap.whole();
$("close").onclick = () => go({ id: "" });
$("entry").addEventListener("close", () => {
  if (state().id) go({ id: "" });
});
$("entry").onclick = (event) => {
  if (event.target === $("entry")) go({ id: "" }); // beside the panel
};
$("others").onchange = () => lastOpened && nearest(lastOpened);
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
}
window.addEventListener("hashchange", render);
start();
