"use strict";

const TOP_K = 5; // classes shown
const MAX_OPEN = 4; // requests open at one time
const MAX_RETRIES = 20; // of a request that a busy service refuses
const CANVAS_PX = 352;
const FOR = [230, 97, 1], AGAINST = [33, 102, 172], MOST_OPAQUE = 150; // colours of evidence, RGB

const element = (id) => document.getElementById(id);
const queue = []; // jobs not yet sent
let numOpen = 0, numDone = 0, numTotal = 0;
let generation = 0; // grows with each "Clear", so that answers of cleared images are not counted
let model = null; // the answer of api/model

function percent(prob) {
  return `${(100 * prob).toFixed(prob > 0.9995 || prob >= 0.0995 ? 1 : 2)} %`;
}

function headers() {
  const token = sessionStorage.getItem("fewsight-token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function start() {
  let response;
  try {
    response = await fetch("api/model", { headers: headers() });
  } catch {
    element("about").textContent = "The service does not answer. Is it still running?";
    return;
  }
  if (response.status === 401) {
    requestToken();
    return;
  }
  const answer = await response.json();
  if (!response.ok) {
    element("about").textContent = answer.error;
    return;
  }
  model = answer;
  element("token-form").hidden = true;
  element("drop").hidden = false;
  element("name").textContent = model.name;
  document.title = `${model.name} · fewsight`;
  const views = model.views.length === 1 ? `view ${model.views[0]}` : `${model.views.length} views`;
  const members = model.members.length ? ` · ${model.members.length} members` : "";
  const calibrated = model.temperature === null ? ""
    : ` · calibrated (temperature ${model.temperature.toFixed(2)})`;
  element("not-calibrated").hidden = model.temperature !== null;
  const threshold = model.threshold === null ? ""
    : ` · none of these below ${percent(model.threshold)}`;
  element("about").textContent = `${model.classes.length} classes · ${views}${members}${calibrated}${threshold}`;
  element("accepted").textContent = `JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC, up to ${Math.floor(model.max_bytes / 2 ** 20)} MiB`
    + ` and ${Math.floor(model.max_pixels / 1e6)} megapixels each.`;
}

function requestToken() {
  element("about").textContent = "";
  element("drop").hidden = true;
  element("token-wrong").textContent = sessionStorage.getItem("fewsight-token") ? "That is not the token." : "";
  sessionStorage.removeItem("fewsight-token");
  element("token-form").hidden = false;
  element("token").focus();
}

function addFiles(files) {
  if (model === null || element("drop").hidden) return;
  for (const file of files) {
    const item = element("result").content.cloneNode(true).querySelector("li");
    item.querySelector(".file").textContent = visible(file.name);
    const picture = item.querySelector("img");
    const url = URL.createObjectURL(file);
    picture.addEventListener("load", () => URL.revokeObjectURL(url));
    picture.addEventListener("error", () => {
      URL.revokeObjectURL(url);
      picture.hidden = true;
      item.querySelector(".no-picture").hidden = false;
    });
    picture.src = url;
    element("results").append(item);
    queue.push({ file, item });
    numTotal += 1;
  }
  element("work").hidden = numTotal === 0;
  showProgress();
  sendNext();
}

function showProgress() {
  element("progress").max = Math.max(numTotal, 1);
  element("progress").value = numDone;
  element("count").textContent = numDone === numTotal ? `${numDone} of ${numTotal} done` : `${numDone} of ${numTotal}`;
}

function sendNext() {
  while (numOpen < MAX_OPEN && queue.length) {
    const job = queue.shift();
    const jobGeneration = generation;
    numOpen += 1;
    predict(job).catch((error) => showError(job.item, String(error))).finally(() => {
      numOpen -= 1;
      if (jobGeneration === generation) {
        numDone += 1;
        showProgress();
      }
      sendNext();
    });
  }
}

async function predict({ file, item }) {
  const state = item.querySelector(".state");
  if (file.size > model.max_bytes) {
    showError(item, `larger than ${model.max_bytes.toLocaleString("en")} bytes, the limit of this service`);
    return;
  }
  for (let retries = 0; ; retries += 1) {
    state.textContent = "sent";
    const body = new FormData();
    body.append("files", file, file.name || "image");
    let response;
    try {
      response = await fetch(`api/predict?details=true&top_k=${TOP_K}`, { method: "POST", body, headers: headers() });
    } catch {
      showError(item, "the service does not answer; is it still running?");
      return;
    }
    if (response.status === 401) {
      showError(item, "the service needs its token");
      requestToken();
      return;
    }
    const answer = await response.json();
    if ((response.status === 429 || response.status === 503) && retries < MAX_RETRIES) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      state.textContent = `the service is busy; trying again in ${seconds} s`;
      await new Promise((resolve) => { setTimeout(resolve, 1000 * seconds * (1 + Math.random() / 2)); });
      continue;
    }
    const result = (answer.results || [])[0];
    if (!response.ok || !result || result.error) showError(item, result?.error || answer.error);
    else showResult(item, result);
    return;
  }
}

function showError(item, reason) {
  item.querySelector(".state").hidden = true;
  const error = item.querySelector(".error");
  error.textContent = reason;
  error.hidden = false;
}

// Escapes control characters and those that change the direction of text, as the command line does.
function visible(text) {
  return text.replace(/[\u200e\u200f\u202a-\u202e\u2066-\u2069\u0000-\u001f]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function addCell(row, text, className = "") {
  const cell = row.insertCell();
  cell.textContent = text;
  cell.className = className;
  return cell;
}

function showResult(item, result) {
  item.querySelector(".state").hidden = true;
  item.querySelector(".answer").hidden = false;
  item.querySelector(".label").textContent = visible(result.label);
  item.querySelector(".prob").textContent = percent(result.prob);
  if (result.none_of_these) {
    item.querySelector(".none").hidden = false;
    item.querySelector(".why").textContent = `The most probable class has ${percent(result.prob)}, less than the `
      + `${percent(model.threshold)} that ${percent(model.coverage)} of images of these classes reach.`;
  }
  const top = item.querySelector(".top tbody");
  for (const { label, prob } of result.top) {
    const row = top.insertRow();
    addCell(row, visible(label));
    const bar = document.createElement("div");
    bar.className = "bar";
    bar.style.width = `${100 * prob}%`;
    const barCell = addCell(row, "");
    barCell.append(bar);
    barCell.setAttribute("aria-hidden", "true");
    addCell(row, percent(prob), "number");
  }
  const activations = item.querySelector(".activations");
  for (const activation of result.details.activations) activations.append(figure(activation, visible(result.label)));
  const { members, views } = result.details;
  const more = item.querySelector(".more");
  more.querySelector("summary").textContent = members.length ? "Prediction of each member and view" : "Prediction of each view";
  more.querySelector(".note").textContent = model.temperature === null ? ""
    : "Before the temperature, which applies to their average.";
  const rows = more.querySelector("tbody");
  for (const part of [...members, ...views]) {
    const row = rows.insertRow();
    addCell(row, visible([part.member, part.view].filter((name) => name !== null).join(", ")));
    addCell(row, part.label === result.label ? visible(part.label) : `${visible(part.label)} (differs)`);
    addCell(row, percent(part.prob), "number");
  }
}

function figure(activation, label) {
  const made = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const member = activation.member === null ? "" : `${visible(activation.member)}, `;
  const view = `${member}${activation.view}`;
  if (activation.map.flat().length === 1) { // a tint of the whole image would show nothing
    caption.textContent = `${view}: the model's map has one field, the whole image, so it cannot show where the evidence is`;
    made.append(caption);
    return made;
  }
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = CANVAS_PX;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Class activation map: orange where the image supports ${label}, blue where it speaks against it`);
  const largest = Math.max(...activation.map.flat().map(Math.abs)) || 1;
  const scale = document.createElement("div");
  scale.className = "scale";
  for (const text of [`−${largest.toPrecision(2)}`, "", `+${largest.toPrecision(2)}`]) {
    const part = document.createElement("span");
    part.textContent = text;
    scale.append(part);
  }
  scale.children[1].style.background = `linear-gradient(to right, rgb(${AGAINST}), transparent, rgb(${FOR}))`;
  caption.textContent = `${view}: orange fields support ${label}, blue ones speak against it`
    + " (logits above and below the mean of the classes)";
  made.append(canvas, scale, caption);
  const picture = new Image();
  picture.addEventListener("load", () => draw(canvas, picture, activation.map, largest));
  picture.src = activation.picture;
  return made;
}

function draw(canvas, picture, map, largest) {
  const height = map.length, width = map[0].length;
  const layer = document.createElement("canvas");
  layer.width = width;
  layer.height = height;
  const pixels = new ImageData(width, height); // the stronger the evidence, the more opaque
  map.flat().forEach((value, index) => {
    pixels.data.set([...(value > 0 ? FOR : AGAINST), Math.round(MOST_OPAQUE * Math.abs(value) / largest)], 4 * index);
  });
  layer.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.filter = "grayscale(1)"; // every colour is evidence
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  context.filter = "none";
  context.imageSmoothingEnabled = false; // the fields as they are, no borders that the model has not seen
  context.drawImage(layer, 0, 0, canvas.width, canvas.height);
}

element("pick").addEventListener("click", () => element("files").click());
element("files").addEventListener("change", (event) => {
  addFiles(event.target.files);
  event.target.value = "";
});
element("clear").addEventListener("click", () => {
  queue.length = 0;
  numDone = numTotal = 0;
  generation += 1;
  element("results").replaceChildren();
  element("work").hidden = true;
  element("pick").focus();
});
element("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("fewsight-token", element("token").value.trim());
  element("token").value = "";
  start();
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  element("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) element("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  addFiles(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) addFiles(event.clipboardData.files);
});
start();
