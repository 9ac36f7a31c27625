// The table of runs: sort by a column, filter by words and by the buttons, tick which runs are drawn.
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
    const found = [...body.rows].filter(matches);
    for (const row of rows) row.hidden = true;
    found.forEach((row, i) => { row.hidden = !all && i >= FIRST; });
    count.value = `${found.length} of ${rows.length} runs`;
    more.hidden = all || found.length <= FIRST;
    more.textContent = `Show all ${found.length}`;
  }

  function sort(header) {
    const column = header.cellIndex, up = header.getAttribute("aria-sort") !== "ascending";
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if ((x === "") !== (y === "")) return x === "" ? 1 : -1; // what is missing comes last either way
      const order = x - y || (isNaN(x - y) ? x.localeCompare(y, "en", { numeric: true }) : 0);
      return up ? order : -order;
    };
    table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...[...body.rows].sort(compare));
    refresh();
  }

  table.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => sort(button.parentElement)));
  search.addEventListener("input", refresh);
  more.addEventListener("click", () => { all = true; refresh(); });
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") !== "true");
      refresh();
    });
  }
  const boxes = new Map(rows.map((row) => [row, row.querySelector("input")]));
  const draw = () => {
    for (const [row, box] of boxes) DATA.runs[+row.dataset.number].shown = box.checked;
    if (window.drawCurves) window.drawCurves();
  };
  body.addEventListener("change", draw);
  const tick = (id, checked) => document.getElementById(id).addEventListener("click", () => {
    for (const [row, box] of boxes) if (!row.hidden) box.checked = checked;
    draw();
  });
  tick("tick", true);
  tick("untick", false);
  refresh();
})();
