// Draws a state of a canvas as a grid of cells, one for each position. Text goes in as text, never as markup.

import { LEVELS, level } from "./history.js";

const GLYPHS = { "\n": "⏎", " ": "␣", "\t": "⇥", "\r": "␍" };
const STOPS = { converged: "converged", step_cap: "step limit", deadline: "deadline" };

// The name of a reason why denoising stopped, as a person would say it.
export function stopName(stop) {
  return STOPS[stop] ?? stop;
}

function glyph(text) {
  if (text === "") return "·";
  if (GLYPHS[text]) return GLYPHS[text];
  if (/^<[^<>\s]{2,}>$/.test(text)) return "∎";
  return text.replaceAll("\n", "⏎").replace(/\p{Cc}/gu, "·");
}

// The classes that say what is known of a position: see the legend.
export function marks(cell, state, position) {
  if (cell === null) return ["unknown"];
  const found = [];
  if (cell.flips) found.push("flipped");
  if (state.changed.has(position) && cell.flips) found.push("now");
  if (state.committed) return ["done", ...found];
  found.push(`h${level(cell.entropy)}`);
  if (!cell.accepted) found.push("renoised");
  return found;
}

function said(cell, position) {
  if (cell === null) return `position ${position}: noise`;
  const mind = cell.flips === 1 ? ", changed its mind once" : cell.flips ? `, changed its mind ${cell.flips} times` : "";
  const kept = cell.accepted ? "accepted" : "renoised";
  return `position ${position}: ${JSON.stringify(cell.text)}, ${cell.entropy.toFixed(3)} nats, ${kept}${mind}`;
}

export class CanvasView {
  constructor(grid) {
    this._grid = grid;
    this._cells = [];
  }

  // `lines`: of ten positions each, as a Sudoku's are.
  clear(lines = false) {
    this._grid.classList.toggle("tens", lines);
    this._grid.replaceChildren();
    this._cells = [];
    this._grid.classList.remove("words");
    this._grid.setAttribute("aria-label", "No canvas yet");
  }

  show(state) {
    while (this._cells.length > state.length) this._cells.pop().remove();
    while (this._cells.length < state.length) {
      const cell = document.createElement("span");
      this._cells.push(cell);
      this._grid.append(cell);
    }
    // Wide columns for tokens that are words, decided once so that nothing jumps while it clears.
    const long = state.cells.filter((cell) => cell && [...glyph(cell.text)].length > 2).length;
    if (long > state.length / 8) this._grid.classList.add("words");
    state.cells.forEach((cell, position) => {
      const element = this._cells[position];
      const text = cell === null ? "" : glyph(cell.text);
      if (element.textContent !== text) element.textContent = text;
      const beyond = state.tokens !== null && position >= state.tokens;
      const name = ["cell", ...marks(cell, state, position), ...(beyond ? ["beyond"] : [])].join(" ");
      if (element.className !== name) element.className = name;
      element.title = said(cell, position);
    });
    this._grid.setAttribute("aria-label", summary(state));
  }
}

// One sentence on a state, for those who do not see it.
export function summary(state) {
  const known = state.cells.filter((cell) => cell !== null);
  const where = `Canvas ${state.canvas + 1}, step ${state.step}`;
  if (!known.length) return `${where}: noise, nothing decided`;
  const text = known.map((cell) => cell.text).join("");
  if (state.committed) return `${where}: committed. ${text.slice(0, 400)}`;
  const sure = known.filter((cell) => cell.accepted && level(cell.entropy) < 2).length;
  return `${where}: ${sure} of ${state.length} positions sure, ${state.changed.size} revised. ${text.slice(0, 400)}`;
}

export function drawScale(list) {
  const bounds = LEVELS.map(String);
  const names = [`below ${bounds[0]}`, ...bounds.map((b, i) => (i + 1 < bounds.length ? `${b}–${bounds[i + 1]}` : `${b} and more`))];
  const items = names.map((name, index) => {
    const item = document.createElement("li");
    const cell = document.createElement("span");
    cell.className = `cell h${index}`;
    cell.textContent = "7";
    cell.setAttribute("aria-hidden", "true");
    item.append(cell, ` ${name}`);
    return item;
  });
  const unit = document.createElement("li");
  unit.textContent = "nats of entropy";
  list.replaceChildren(...items, unit);
}
