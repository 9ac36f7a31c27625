// Sortable tables, and the table of runs with its filter and the checkboxes that select the runs to draw.
function sort(header) {
  const table = header.closest("table"), body = table.tBodies[0], column = header.cellIndex;
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if ((x === "") !== (y === "")) return x === "" ? 1 : -1; // missing values come last in both directions
    const order = x - y || (isNaN(x - y) ? x.localeCompare(y, "en", { numeric: true }) : 0);
    return ascending ? order : -order;
  };
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  body.append(...[...body.rows].sort(compare));
  table.dispatchEvent(new Event("sorted"));
}
document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => sort(button.parentElement)));

(() => {
  const table = document.getElementById("runs-table");
  if (!table) return;
  const FIRST = 50;
  const body = table.tBodies[0], rows = [...body.rows];
  const search = document.getElementById("filter"), count = document.getElementById("count");
  const more = document.getElementById("more"), chips = [...document.querySelectorAll(".chip")];
  const text = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  let all = false;

  function matches(row) {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const pressed = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true");
    const kinds = new Set(pressed.map((chip) => chip.dataset.kind));
    return words.every((word) => text.get(row).includes(word)) && [...kinds].every((kind) =>
      pressed.some((chip) => chip.dataset.kind === kind && row.dataset[kind] === chip.dataset.value));
  }

  function refresh() {
    const matching = [...body.rows].filter(matches);
    for (const row of rows) row.hidden = true;
    matching.forEach((row, i) => { row.hidden = !all && i >= FIRST; });
    count.value = `${matching.length} of ${rows.length} runs`;
    more.hidden = all || matching.length <= FIRST;
    more.textContent = `Show all ${matching.length}`;
  }

  table.addEventListener("sorted", refresh);
  search.addEventListener("input", refresh);
  more.addEventListener("click", () => { all = true; refresh(); });
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") !== "true");
      refresh();
    });
  }
  const boxes = new Map(rows.map((row) => [row, row.querySelector("input")]));
  const redraw = () => {
    for (const [row, box] of boxes) DATA.runs[+row.dataset.number].drawn = box.checked;
    if (window.drawCurves) window.drawCurves();
  };
  body.addEventListener("change", redraw);
  const checkListed = (id, checked) => document.getElementById(id).addEventListener("click", () => {
    for (const [row, box] of boxes) if (!row.hidden) box.checked = checked;
    redraw();
  });
  checkListed("draw-all", true);
  checkListed("draw-none", false);
  refresh();
})();
