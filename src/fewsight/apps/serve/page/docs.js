"use strict";

function add(parent, tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
}

function table(parent, caption, rows) {
  if (!rows.length) return;
  const made = document.createElement("table");
  add(made, "caption", caption);
  const body = made.createTBody();
  for (const [name, told] of rows) {
    const row = body.insertRow();
    add(row, "th", name).scope = "row";
    add(row, "td", told);
  }
  parent.append(made);
}

async function begin() {
  const described = await (await fetch("openapi.json")).json();
  const asksToken = Boolean(described.components.securitySchemes);
  document.getElementById("told").textContent = described.info.description;
  const token = asksToken ? ' -H "Authorization: Bearer $FEWSIGHT_TOKEN"' : "";
  document.getElementById("example").textContent = `curl${token} -F files=@1.jpg -F files=@2.jpg ${location.origin}/api/predict`;
  const all = document.getElementById("operations");
  for (const [path, operations] of Object.entries(described.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const part = add(all, "section", "");
      add(part, "h2", `${method.toUpperCase()} ${path}`);
      for (const text of (operation.description || "").split("\n\n")) add(part, "p", text);
      table(part, "Query", (operation.parameters || []).map((one) => [one.name, `${one.description} (${one.schema.default})`]));
      table(part, "Status", Object.entries(operation.responses).map(([status, one]) => [status, one.description]));
    }
  }
}

begin();
