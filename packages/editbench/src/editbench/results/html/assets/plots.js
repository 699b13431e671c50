// Figures: every number that is drawn can be pointed at, or reached with the arrow keys.
const SVG = "http://www.w3.org/2000/svg";
const tip = element("div", { id: "tip", class: "tip", "aria-hidden": "true", hidden: true });
document.body.append(tip);

function showTip(target, text) {
  tip.textContent = text;
  tip.hidden = false;
  const place = target.getBoundingClientRect();
  const own = tip.getBoundingClientRect();
  const room = document.documentElement.clientWidth;
  const left = Math.min(Math.max(4, place.left + place.width / 2 - own.width / 2), room - own.width - 4);
  const above = place.top - own.height - 6;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${(above > 0 ? above : place.bottom + 6) + scrollY}px`;
}

function hideTip() {
  tip.hidden = true;
}

addEventListener("keydown", (event) => event.key === "Escape" && hideTip());

/** What the rows of numbers say that stand at one place. */
function describe(rows, panel) {
  const lines = [];
  for (const row of rows) {
    const { series, x, text, n } = row.dataset;
    const where = x && x !== series ? `${panel.dataset.x || "at"} ${x}` : "";
    lines.push([series, text, where, `n = ${n}`].filter(Boolean).join("\n"));
  }
  return lines.join("\n\n");
}

for (const figure of document.querySelectorAll("figure.plot")) {
  const panels = [...figure.querySelectorAll(".panel")];
  const places = new Map();
  for (const row of figure.querySelectorAll("tr[data-panel]")) {
    const place = [row.dataset.panel, row.dataset.left, row.dataset.top].join(" ");
    places.set(place, [...(places.get(place) ?? []), row]);
  }
  const hits = panels.map(() => []);
  for (const rows of places.values()) {
    const { panel: index, left, top } = rows[0].dataset;
    const panel = panels[index];
    const hit = document.createElementNS(SVG, "circle");
    const text = describe(rows, panel);
    const attributes = { cx: left, cy: top, r: 6, class: "hit", role: "img", tabindex: -1 };
    for (const [name, value] of Object.entries(attributes)) hit.setAttribute(name, value);
    hit.setAttribute("aria-label", text.replaceAll("\n", ", "));
    hit.addEventListener("pointerenter", () => showTip(hit, text));
    hit.addEventListener("pointerleave", hideTip);
    hit.addEventListener("focus", () => showTip(hit, text));
    hit.addEventListener("blur", hideTip);
    hits[index].push(hit);
  }
  for (const [index, panel] of panels.entries()) {
    const own = hits[index].sort((a, b) => a.cx.baseVal.value - b.cx.baseVal.value);
    if (own.length === 0) continue;
    const svg = panel.querySelector("svg");
    for (const drawn of svg.children) drawn.setAttribute("aria-hidden", "true");
    svg.removeAttribute("aria-hidden");
    svg.setAttribute("role", "group");
    svg.setAttribute("aria-label", `${panel.dataset.title}: ${own.length} places, use the arrow keys`);
    svg.append(...own);
    own[0].setAttribute("tabindex", 0);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const at = own.indexOf(event.target);
      if (step === undefined || at < 0) return;
      event.preventDefault();
      const next = own[(at + step + own.length) % own.length];
      event.target.setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    });
  }
}

for (const map of document.querySelectorAll("table.heat")) {
  map.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("td");
    if (!cell) return hideTip();
    const row = cell.parentElement.cells[0].textContent.trim();
    const column = map.tHead.rows[0].cells[cell.cellIndex].textContent.trim();
    const [down, across] = [map.dataset.rows, map.dataset.columns];
    showTip(cell, `${down}: ${row}\n${across}: ${column}\n${map.dataset.unit}: ${cell.textContent.trim()}`);
  });
  map.addEventListener("pointerleave", hideTip);
}
