"use strict";

function add(parent, tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  parent.append(element);
  return element;
}

function addTable(parent, caption, entries) {
  if (!entries.length) return;
  const table = document.createElement("table");
  add(table, "caption", caption);
  const body = table.createTBody();
  for (const [name, description] of entries) {
    const row = body.insertRow();
    add(row, "th", name).scope = "row";
    add(row, "td", description);
  }
  parent.append(table);
}

async function start() {
  const openapi = await (await fetch("openapi.json")).json();
  const needsToken = Boolean(openapi.components.securitySchemes);
  document.getElementById("description").textContent = openapi.info.description;
  const header = needsToken ? ' -H "Authorization: Bearer $FEWSIGHT_TOKEN"' : "";
  document.getElementById("example").textContent = `curl${header} -F files=@1.jpg -F files=@2.jpg ${location.origin}/api/predict`;
  const container = document.getElementById("operations");
  for (const [path, operations] of Object.entries(openapi.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const section = add(container, "section", "");
      add(section, "h2", `${method.toUpperCase()} ${path}`);
      for (const paragraph of (operation.description || "").split("\n\n")) add(section, "p", paragraph);
      addTable(section, "Query", (operation.parameters || []).map(
        (parameter) => [parameter.name, `${parameter.description} (${parameter.schema.default})`]));
      addTable(section, "Status", Object.entries(operation.responses).map(
        ([status, response]) => [status, response.description]));
    }
  }
}

start();
