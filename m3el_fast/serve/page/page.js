// Text from the server or the user becomes text nodes only: never HTML.
const $ = (id) => document.getElementById(id);
const COMPONENTS = { text: "text", image: "image", t2v: "text to image", v2t: "image to text" };
let picture = null;
let knowsEntities = false;
let asked = 0; // an answer to an older question is not shown

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

// -- the question -----------------------------------------------------------------------------------------------------

function markSelection() {
  const { selectionStart: start, selectionEnd: end, value } = $("sentence");
  const name = value.slice(start, end).trim();
  if (!name) return;
  $("mention").value = name;
  showMarked(start + value.slice(start, end).indexOf(name));
}

function showMarked(at = -1) {
  const sentence = $("sentence").value;
  const name = $("mention").value;
  const place = at >= 0 ? at : name ? sentence.indexOf(name) : -1;
  $("marked").hidden = place < 0;
  if (place < 0) return;
  const before = sentence.slice(Math.max(0, place - 80), place);
  const after = sentence.slice(place + name.length, place + name.length + 80);
  $("marked").replaceChildren(before, element("mark", {}, name), after);
}

function setPicture(file) {
  if (file && !file.type.startsWith("image/")) {
    showError(`Picture: expected an image, got ${file.type || "a file of unknown type"}`);
    return;
  }
  if (picture) URL.revokeObjectURL($("preview").src);
  picture = file;
  $("preview").hidden = $("remove").hidden = !file;
  $("drop-text").hidden = Boolean(file);
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
  const own = ++asked;
  showError("");
  $("link").disabled = true;
  $("results").setAttribute("aria-busy", "true");
  $("status").textContent = "Linking…";
  try {
    const started = performance.now();
    const { links, entities } = await get("link", { method: "POST", body: form });
    const taken = performance.now() - started;
    if (own !== asked) return;
    const found = links[0] ?? [];
    showResults(found);
    const doubt = found.length && !entities[0] ? " It is probably none of them." : "";
    $("status").textContent = `${found.length} candidates for “${form.get("mention")}”, ${taken.toFixed(0)} ms.${doubt}`;
  } catch (error) {
    $("results").replaceChildren();
    $("status").textContent = "";
    showError(error.message);
  } finally {
    $("link").disabled = false;
    $("results").removeAttribute("aria-busy");
  }
}

function showResults(found) {
  const values = found.flatMap((one) => Object.values(one.components)).filter((value) => typeof value === "number");
  const low = Math.min(0, ...values);
  const high = Math.max(0, ...values, low + 1e-9);
  $("results").replaceChildren(...found.map((one, place) => card(one, place, low, high)));
}

function card(one, place, low, high) {
  const about = element("p", { class: "about" }, one.id, ...others(one));
  const frame = element("div", { class: "picture", "aria-hidden": "true" });
  if (knowsEntities) describe(one.id, about, frame);
  const score = element("span", { class: "score", title: "score" }, number(one.score));
  const title = element("div", { class: "title" }, element("span", { class: "name" }, `${place + 1}. ${one.name}`), score);
  const body = element("div", {}, title, about, bars(one.components, low, high));
  return element("li", { class: place ? "entity" : "entity first" }, frame, body);
}

// Whatever else the server says of a link.
function others(one) {
  const known = new Set(["id", "name", "score", "components"]);
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
    const text = entity.desc || entity.attr;
    if (text) about.append(` · ${text.length > 240 ? `${text.slice(0, 240)}…` : text}`);
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
for (const event of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(event, (drag) => {
    drag.preventDefault();
    $("drop").classList.toggle("over", event === "dragover");
    if (event === "drop" && drag.dataTransfer.files.length) setPicture(drag.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) setPicture(file);
});

try {
  const health = await get("healthz");
  knowsEntities = health.kb;
  const { index } = health;
  $("server").textContent = `${health.model.toUpperCase()} · ${index.entities.toLocaleString("en")} entities · index ${index.name}, version ${index.version}`;
} catch (error) {
  $("server").textContent = error.message;
}
