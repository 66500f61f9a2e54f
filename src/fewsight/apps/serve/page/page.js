"use strict";

const TOP = 5; // classes shown
const AT_ONCE = 4; // requests that this page has open
const PATIENCE = 20; // times that a busy service is asked again
const CANVAS_PX = 352;

const element = (id) => document.getElementById(id);
const waiting = [];
let open = 0, done = 0, total = 0, round = 0;
let about = null;

function percent(prob) {
  return `${(100 * prob).toFixed(prob > 0.9995 || prob >= 0.0995 ? 1 : 2)} %`;
}

function headers() {
  const token = sessionStorage.getItem("fewsight-token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function begin() {
  let answer;
  try {
    answer = await fetch("api/model", { headers: headers() });
  } catch {
    element("about").textContent = "The service does not answer. Is it still running?";
    return;
  }
  if (answer.status === 401) {
    askToken();
    return;
  }
  about = await answer.json();
  if (!answer.ok) {
    element("about").textContent = about.error;
    return;
  }
  element("token-form").hidden = true;
  element("drop").hidden = false;
  element("name").textContent = about.name;
  document.title = `${about.name} · fewsight`;
  const seen = about.views.length === 1 ? `view ${about.views[0]}` : `${about.views.length} views`;
  const members = about.members.length ? ` · ${about.members.length} members` : "";
  const calibrated = about.temperature === null ? "probabilities as the model gives them"
    : `calibrated (temperature ${about.temperature.toFixed(2)})`;
  const threshold = about.threshold === null ? ""
    : ` · none of these below ${percent(about.threshold)}`;
  element("about").textContent = `${about.classes.length} classes · ${seen}${members} · ${calibrated}${threshold}`;
  element("takes").textContent = `JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC, up to ${Math.floor(about.max_bytes / 2 ** 20)} MiB`
    + ` and ${Math.floor(about.max_pixels / 1e6)} megapixels each.`;
}

function askToken() {
  element("about").textContent = "";
  element("drop").hidden = true;
  element("token-wrong").textContent = sessionStorage.getItem("fewsight-token") ? "That is not the token." : "";
  sessionStorage.removeItem("fewsight-token");
  element("token-form").hidden = false;
  element("token").focus();
}

function take(files) {
  if (about === null || element("drop").hidden) return;
  for (const file of files) {
    const item = element("result").content.cloneNode(true).querySelector("li");
    item.querySelector(".file").textContent = shown(file.name);
    const picture = item.querySelector("img");
    const address = URL.createObjectURL(file);
    picture.addEventListener("load", () => URL.revokeObjectURL(address));
    picture.addEventListener("error", () => {
      URL.revokeObjectURL(address);
      picture.hidden = true;
      item.querySelector(".no-picture").hidden = false;
    });
    picture.src = address;
    element("results").append(item);
    waiting.push({ file, item });
    total += 1;
  }
  element("work").hidden = total === 0;
  show();
  next();
}

function show() {
  element("progress").max = Math.max(total, 1);
  element("progress").value = done;
  element("count").textContent = done === total ? `${done} of ${total} done` : `${done} of ${total}`;
}

function next() {
  while (open < AT_ONCE && waiting.length) {
    const job = waiting.shift();
    const began = round;
    open += 1;
    ask(job).catch((error) => fail(job.item, String(error))).finally(() => {
      open -= 1;
      if (began === round) {
        done += 1;
        show();
      }
      next();
    });
  }
}

async function ask({ file, item }) {
  const state = item.querySelector(".state");
  if (file.size > about.max_bytes) {
    fail(item, `larger than ${about.max_bytes.toLocaleString("en")} bytes, the limit of this service`);
    return;
  }
  for (let turn = 0; ; turn += 1) {
    state.textContent = "asking";
    const body = new FormData();
    body.append("files", file, file.name || "image");
    let answer;
    try {
      answer = await fetch(`api/predict?details=true&top_k=${TOP}`, { method: "POST", body, headers: headers() });
    } catch {
      fail(item, "the service does not answer; is it still running?");
      return;
    }
    if (answer.status === 401) {
      fail(item, "the service asks for its token");
      askToken();
      return;
    }
    const found = await answer.json();
    if ((answer.status === 429 || answer.status === 503) && turn < PATIENCE) {
      const seconds = Number(answer.headers.get("Retry-After")) || 1;
      state.textContent = `the service is busy; asking again in ${seconds} s`;
      await new Promise((ready) => { setTimeout(ready, 1000 * seconds * (1 + Math.random() / 2)); });
      continue;
    }
    const result = (found.results || [])[0];
    if (!answer.ok || !result || result.error) fail(item, result?.error || found.error);
    else succeed(item, result);
    return;
  }
}

function fail(item, reason) {
  item.querySelector(".state").hidden = true;
  const error = item.querySelector(".error");
  error.textContent = reason;
  error.hidden = false;
}

// signs that turn the direction of text, as the command line shows them
function shown(text) {
  return text.replace(/[\u200e\u200f\u202a-\u202e\u2066-\u2069\u0000-\u001f]/g,
    (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function cell(row, text, name = "") {
  const made = row.insertCell();
  made.textContent = text;
  made.className = name;
  return made;
}

function succeed(item, result) {
  item.querySelector(".state").hidden = true;
  item.querySelector(".answer").hidden = false;
  item.querySelector(".label").textContent = shown(result.label);
  item.querySelector(".prob").textContent = percent(result.prob);
  if (result.none_of_these) {
    item.querySelector(".none").hidden = false;
    item.querySelector(".why").textContent = `${percent(result.prob)} for the most probable class is less than the `
      + `${percent(about.threshold)} that ${percent(about.coverage)} of images of these classes reach.`;
  }
  const top = item.querySelector(".top tbody");
  for (const { label, prob } of result.top) {
    const row = top.insertRow();
    cell(row, shown(label));
    const bar = document.createElement("div");
    bar.className = "bar";
    bar.style.width = `${100 * prob}%`;
    const place = cell(row, "");
    place.append(bar);
    place.setAttribute("aria-hidden", "true");
    cell(row, percent(prob), "number");
  }
  const looked = item.querySelector(".looked");
  for (const one of result.details.activations) looked.append(figure(one, shown(result.label)));
  const { members, views } = result.details;
  const more = item.querySelector(".more");
  more.querySelector("summary").textContent = members.length ? "What each member and view says" : "What each view says";
  more.querySelector(".note").textContent = about.temperature === null ? "" : "Before the temperature, which belongs to the whole.";
  const rows = more.querySelector("tbody");
  for (const one of [...members, ...views]) {
    const row = rows.insertRow();
    cell(row, shown([one.member, one.view].filter((part) => part !== null).join(", ")));
    cell(row, one.label === result.label ? shown(one.label) : `${shown(one.label)} (another)`);
    cell(row, percent(one.prob), "number");
  }
}

function figure(one, label) {
  const made = document.createElement("figure");
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = CANVAS_PX;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Where the model looked for ${label}: the brighter, the more it speaks for it`);
  const caption = document.createElement("figcaption");
  caption.textContent = `${one.member === null ? "" : `${shown(one.member)}, `}${one.view}: bright where it speaks for ${label}`;
  made.append(canvas, caption);
  const picture = new Image();
  picture.addEventListener("load", () => draw(canvas, picture, one.map));
  picture.src = one.picture;
  return made;
}

function draw(canvas, picture, map) {
  const height = map.length, width = map[0].length;
  const shade = document.createElement("canvas");
  shade.width = width;
  shade.height = height;
  const values = map.flat(), highest = Math.max(...values), lowest = highest > 0 ? 0 : Math.min(...values);
  const pixels = new ImageData(width, height); // black, the more opaque the less the class is seen there
  values.forEach((value, place) => {
    const share = highest > lowest ? Math.max(value - lowest, 0) / (highest - lowest) : 1;
    pixels.data[4 * place + 3] = Math.round(215 * (1 - share));
  });
  shade.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  context.drawImage(shade, 0, 0, canvas.width, canvas.height);
}

element("pick").addEventListener("click", () => element("files").click());
element("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});
element("clear").addEventListener("click", () => {
  waiting.length = 0;
  done = total = 0;
  round += 1;
  element("results").replaceChildren();
  element("work").hidden = true;
  element("pick").focus();
});
element("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("fewsight-token", element("token").value.trim());
  element("token").value = "";
  begin();
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
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});
begin();
