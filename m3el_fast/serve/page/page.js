// Text from the server or the user becomes text nodes only: never HTML.
const $ = (id) => document.getElementById(id);
const COMPONENTS = { text: "text", image: "image", t2v: "text → image", v2t: "image → text" };
let picture = null;
let server = {}; // as /healthz describes it
let selection = ""; // in the sentence, when it was last looked at

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function svg(name, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const number = (value) => (typeof value === "number" ? value.toFixed(2) : "–");
const percent = (value) => (value > 0 && value < 0.0005 ? "< 0.1%" : `${(100 * value).toFixed(1)}%`);

// By characters: half of one is none.
const first = (text, count) => Array.from(text.slice(0, 2 * count)).slice(0, count).join("");
const last = (text, count) => Array.from(text.slice(-2 * count)).slice(-count).join("");

// -- the question -----------------------------------------------------------------------------------------------------

function markSelection() {
  const { selectionStart: start, selectionEnd: end, value } = $("sentence");
  const selected = `${start} ${end} ${value}`;
  if (selection === selected) return; // an old one does not undo what was typed since
  selection = selected;
  const name = value.slice(start, end).trim();
  if (!name) return;
  $("mention").value = name.replace(/\s+/g, " ");
  showMarked(name, start + value.slice(start, end).indexOf(name));
}

function showMarked(name = $("mention").value, place = name ? $("sentence").value.indexOf(name) : -1) {
  $("marked").hidden = place < 0;
  if (place < 0) return;
  const sentence = $("sentence").value;
  const [before, after] = [sentence.slice(0, place), sentence.slice(place + name.length)];
  const [left, right] = [last(before, 80), first(after, 80)];
  const cut = (part, whole) => (part.length < whole.length ? "…" : "");
  $("marked").replaceChildren(cut(left, before), left, element("mark", {}, name), right, cut(right, after));
}

function setPicture(file) {
  if (file && !file.type.startsWith("image/")) {
    showError(`Picture: expected an image, got ${file.type || "a file of unknown type"}`);
    return;
  }
  showError("");
  if (picture) URL.revokeObjectURL($("preview").src);
  picture = file;
  $("preview").hidden = $("remove").hidden = !file;
  $("picture-name").textContent = file ? file.name : "Drop or paste an image, or";
  $("choose").textContent = file ? "Choose another" : "choose a file";
  if (file) $("preview").src = URL.createObjectURL(file);
  else {
    $("preview").removeAttribute("src");
    $("image").value = "";
  }
}

// -- the answer -------------------------------------------------------------------------------------------------------

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
  if (text) $("error").scrollIntoView({ block: "nearest" });
}

async function get(address, options) {
  let answer, content;
  try {
    answer = await fetch(address, options);
    content = await answer.json();
  } catch {
    throw new Error("The server does not answer.");
  }
  if (answer.ok) return content;
  const { where, expected, got } = content.error ?? {};
  const busy = answer.status === 503 ? " Try again in a moment." : "";
  throw new Error(where ? `${where}: expected ${expected}, got ${got}.${busy}` : `The server answered ${answer.status}.`);
}

async function link(event) {
  event.preventDefault();
  for (const id of ["sentence", "mention", "k"]) {
    if (!$(id).checkValidity()) {
      const told = { sentence: "Paste a sentence first.", mention: "Select the mention in the sentence." };
      showError(told[id] ?? "Candidates: expected a number from 1 to 100.");
      $(id).focus();
      return;
    }
  }
  const form = new FormData();
  for (const id of ["sentence", "mention", "k"]) form.append(id, $(id).value);
  if (picture) form.append("image", picture);
  const focused = document.activeElement;
  showError("");
  $("link").disabled = true;
  $("results").setAttribute("aria-busy", "true");
  $("status").textContent = "Linking…";
  try {
    const started = performance.now();
    const { links, entities } = await get("link", { method: "POST", body: form });
    const taken = performance.now() - started;
    const mention = form.get("mention");
    const name = element("bdi", {}, mention.length > 80 ? `${first(mention, 80)}…` : mention);
    $("status").replaceChildren(`${links[0].length} candidates for “`, name, `”, ${taken.toFixed(0)} ms.`);
    showResults(links[0], entities[0]);
  } catch (error) {
    $("results").replaceChildren();
    $("nil").hidden = true;
    $("status").textContent = "Nothing linked.";
    showError(error.message);
  } finally {
    $("link").disabled = false;
    $("results").removeAttribute("aria-busy");
    focused.focus({ preventScroll: true }); // a button loses it while it is disabled
  }
}

function showResults(found, entity) {
  $("nil").hidden = entity !== null;
  if (entity === null) {
    const { nil_threshold: threshold } = server;
    const least = typeof threshold === "number" ? `, less than the ${percent(threshold)} that an answer needs` : "";
    const why = found.length ? ` The best candidate has a probability of ${percent(found[0].probability)}${least}.` : "";
    $("nil").replaceChildren(element("strong", {}, "No entity (NIL)."), why);
  }
  const values = found.flatMap((one) => Object.values(one.components)).filter((value) => typeof value === "number");
  const low = Math.min(0, ...values);
  const high = Math.max(0, ...values, low + 1e-9);
  $("results").replaceChildren(...found.map((one, place) => card(one, place, one.id === entity, low, high)));
  const title = $("results-title");
  if (title.getBoundingClientRect().bottom > window.innerHeight) title.scrollIntoView(); // below the form on a phone
}

function card(one, place, best, low, high) {
  const about = element("p", { class: "about" }, element("bdi", {}, one.id), ...others(one));
  const name = element("span", { class: "name" }, `${place + 1}. `, element("bdi", {}, one.name));
  const figures = element("span", { class: "figures" });
  if (typeof one.probability === "number") {
    figures.append(element("strong", { class: "probability", title: "probability" }, percent(one.probability)), " ");
  }
  figures.append("score ", element("span", { class: "score" }, number(one.score)));
  const title = element("div", { class: "title" }, name, figures);
  const parts = [element("div", {}, title, about, bars(one.components, low, high))];
  if (server.kb) {
    parts.unshift(element("div", { class: "picture" }));
    describe(one.id, about, parts[0]);
  }
  return element("li", { class: `entity${best ? " best" : ""}${server.kb ? "" : " plain"}` }, ...parts);
}

// Whatever else the server says of a link.
function others(one) {
  const known = new Set(["id", "name", "score", "probability", "components"]);
  return Object.entries(one)
    .filter(([key, value]) => !known.has(key) && ["number", "string", "boolean"].includes(typeof value))
    .map(([key, value]) => ` · ${key} ${typeof value === "number" ? Number(value.toPrecision(4)) : value}`);
}

function bars(components, low, high) {
  const list = element("dl", { class: "bars" });
  const at = (value) => (100 * (value - low)) / (high - low);
  for (const [key, value] of Object.entries(components)) {
    const drawing = svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
    if (typeof value === "number") {
      const [from, to] = [Math.min(at(0), at(value)), Math.max(at(0), at(value))];
      drawing.append(svg("rect", { class: value < 0 ? "negative" : "", x: from, width: to - from, y: 0, height: 10 }));
    }
    if (low < 0) drawing.append(svg("line", { x1: at(0), x2: at(0), y1: 0, y2: 10 }));
    list.append(element("dt", {}, COMPONENTS[key] ?? key), element("dd", {}, drawing), element("dd", {}, number(value)));
  }
  return list;
}

async function describe(id, about, frame) {
  try {
    const entity = await get(`entities/${encodeURIComponent(id)}`);
    const text = entity.desc || entity.attr || "";
    const start = first(text, 240);
    if (text) about.append(" · ", element("bdi", {}, start.length < text.length ? `${start}…` : start));
    frame.textContent = "no picture";
    if (!entity.image) return;
    const image = element("img", { class: "picture", alt: "", loading: "lazy" });
    image.addEventListener("error", () => image.replaceWith(frame));
    image.src = `entities/${encodeURIComponent(id)}/image`;
    frame.replaceWith(image);
  } catch {
    // the card stands without a text and a picture
  }
}

// -- start ------------------------------------------------------------------------------------------------------------

$("form").addEventListener("submit", link);
for (const event of ["mouseup", "touchend", "keyup", "select"]) $("sentence").addEventListener(event, markSelection);
for (const id of ["sentence", "mention"]) $(id).addEventListener("input", () => showMarked());
$("image").addEventListener("change", () => setPicture($("image").files[0] ?? null));
$("remove").addEventListener("click", () => setPicture(null));
$("preview").addEventListener("error", () => ($("preview").hidden = true)); // a format that browsers do not show
setPicture(null); // a reload keeps the file that was chosen before
for (const event of ["dragover", "dragleave", "drop"]) {
  // anywhere: beside the box a browser would leave the page and open the file
  document.addEventListener(event, (drag) => {
    if (!drag.dataTransfer.types.includes("Files")) return; // a text, for the sentence
    drag.preventDefault();
    $("drop").classList.toggle("over", event === "dragover");
    if (event === "drop") setPicture(drag.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const { files, types } = event.clipboardData;
  const file = [...files].find((one) => one.type.startsWith("image/"));
  if (file && !types.includes("text/plain")) setPicture(file); // with a text, the file is a picture of that text
});

try {
  server = await get("healthz");
  const { model, index } = server;
  $("server").textContent = `${model.toUpperCase()} · ${index.entities.toLocaleString("en")} entities · index ${index.name}, version ${index.version}`;
} catch (error) {
  $("server").textContent = error.message;
}
