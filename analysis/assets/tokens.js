// The panel: what the models say about the token under the pointer, else about the selected one.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const LETTERS = "AB";
const passage = document.getElementById("passage"), panel = document.getElementById("panel");
const tokens = [...passage.querySelectorAll(".tok")];
const isNarrow = matchMedia("(max-width: 60rem)");
const two = DATA.tokens.some(([, scores]) => scores.length > 1);
let selected = null, active = null;

const number = (token) => +token.id.slice(1);
const grouped = (n) => n.toLocaleString("en-US");
const percent = (p) => `${p >= 0.9995 ? 100 : p >= 0.1 ? (100 * p).toFixed(1) : (100 * p).toPrecision(2)}%`;

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// A token's text with marks; only `textContent` is ever set, so that no text becomes markup.
function spelled(id) {
  const parts = DATA.texts[id].map((part) => typeof part === "string" ? part : element("i", { className: part[0] }, part[1]));
  return element("span", { className: "chip-text" }, ...parts);
}

function facts(pairs) {
  return element("dl", {}, ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function column(id, [loss, rank, context, ids, probabilities], run) {
  const row = (other, probability, ...more) => {
    const made = element("li", { className: other === id ? "true" : "" }, spelled(other), ...more, element("span", {}, percent(probability)));
    made.style.setProperty("--p", probability);
    return made;
  };
  const rows = ids.map((other, n) => row(other, probabilities[n]));
  if (!ids.includes(id)) rows.push(row(id, Math.exp(-loss), element("span", { className: "rank" }, "this token")));
  const letter = two ? [element("b", { className: "letter" }, LETTERS[run])] : [];
  return element("div", {}, ...letter, facts([
    ["loss", `${loss.toFixed(2)} nats`], ["probability", percent(Math.exp(-loss))],
    ["rank", `${grouped(rank)} of ${grouped(DATA.vocabulary)}`], ["context", context === 1 ? "1 token" : `${grouped(context)} tokens`],
  ]), element("h3", {}, "likeliest"), element("ol", {}, ...rows));
}

function describe(n) {
  const [id, scores] = DATA.tokens[n];
  const close = element("button", { className: "close", type: "button", ariaLabel: "Close", onclick: () => select(null) }, "✕");
  const head = [close, element("h2", {}, spelled(id)), element("span", { className: "soft" }, `token ${grouped(DATA.first + n)} · id ${grouped(id)}`)];
  if (!scores[0]) return [...head, element("p", { className: "change" }, "The first token of a text has no context, so it is not predicted.")];
  const columns = element("div", { className: "columns" }, ...scores.map((found, run) => column(id, found, run)));
  return [...head, ...(two ? [change(scores[1][0] - scores[0][0])] : []), columns];
}

function change(difference) {
  const ratio = Math.exp(Math.abs(difference)), size = ratio < 100 ? ratio.toPrecision(2) : grouped(+ratio.toPrecision(2));
  const words = ratio < 1.05 ? "about as likely" : `${size} times ${difference < 0 ? "likelier" : "less likely"}`;
  const signed = `${difference < 0 ? "−" : "+"}${Math.abs(difference).toFixed(2)}`;
  return element("p", { className: "change" }, element("b", {}, `B − A ${signed} nats`), `: ${words} for B`);
}

function show(token) {
  if (token === active) return;
  active?.classList.remove("active");
  active = token;
  active?.classList.add("active");
  panel.replaceChildren(...(token ? describe(number(token)) : []));
}

// Of all tokens, only the selected one is a tab stop.
function select(token, move = false) {
  if (selected) { selected.tabIndex = -1; selected.ariaSelected = "false"; }
  selected = token;
  (token ?? tokens[0]).tabIndex = 0;
  if (token) token.ariaSelected = "true";
  show(token);
  if (!move || !token) return;
  token.focus({ preventScroll: true });
  token.scrollIntoView({ block: "nearest" }); // above the panel, which covers a phone's lower half
}

// The token in the next line, or the one before, that is closest to a token.
function inNextLine(token, direction) {
  const box = token.getClientRects()[0], step = direction > 0 ? 1 : -1;
  let best = null, distance = Infinity, line = null;
  for (let n = tokens.indexOf(token) + step; n >= 0 && n < tokens.length; n += step) {
    const other = tokens[n].getClientRects()[0];
    if ((other.top - box.top) * step < box.height / 2) continue;
    line ??= other.top;
    if (Math.abs(other.top - line) > box.height / 2) break;
    if (Math.abs(other.left - box.left) < distance) [best, distance] = [tokens[n], Math.abs(other.left - box.left)];
  }
  return best ?? token;
}

const MOVES = {
  ArrowRight: (token) => tokens[tokens.indexOf(token) + 1], ArrowLeft: (token) => tokens[tokens.indexOf(token) - 1],
  ArrowDown: (token) => inNextLine(token, 1), ArrowUp: (token) => inNextLine(token, -1),
  Home: () => tokens[0], End: () => tokens.at(-1),
};

// In a narrow window the panel covers tokens, so only a click or a tap opens it.
passage.addEventListener("mouseover", (event) => { if (!isNarrow.matches) show(event.target.closest(".tok") ?? active); });
passage.addEventListener("mouseleave", () => show(selected));
passage.addEventListener("click", (event) => { const token = event.target.closest(".tok"); if (token) select(token, true); });
passage.addEventListener("focusin", (event) => { const token = event.target.closest(".tok"); if (token && token !== selected) select(token); });
passage.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (!move || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  select(move(event.target) ?? event.target, true);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") { document.activeElement?.blur(); select(null); } });
document.querySelectorAll("a[href^='#t']").forEach((link) => link.addEventListener("click", (event) => {
  event.preventDefault();
  const token = document.querySelector(link.getAttribute("href"));
  select(token, true);
  token.scrollIntoView({ block: "center" });
}));

tokens.forEach((token) => { token.ariaSelected = "false"; });
const largest = document.querySelector("a[href^='#t']");
select(isNarrow.matches || !largest ? null : document.querySelector(largest.getAttribute("href")));
