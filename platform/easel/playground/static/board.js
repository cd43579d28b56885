// The Sudoku board: nine by nine fields to type into, which fill in while a canvas is denoised.

import { marks } from "./canvas_view.js";
import { conflicts, onBoard } from "./sudoku.js";

const MOVES = { ArrowUp: -9, ArrowDown: 9, ArrowLeft: -1, ArrowRight: 1 };
const STATES = ["given", "answer", "conflict", "unknown", "flipped", "now", "renoised", "done", "h0", "h1", "h2", "h3", "h4", "h5"];

export class Board {
  // `onEdit()` is called where a person changed a given.
  constructor(root, onEdit) {
    this._onEdit = onEdit;
    this.givens = Array(81).fill("");
    this._fields = [];
    this._locked = false;
    for (let row = 0; row < 9; row++) {
      const line = document.createElement("div");
      line.setAttribute("role", "row");
      line.className = "row";
      for (let column = 0; column < 9; column++) line.append(this._makeCell(row, column));
      root.append(line);
    }
    this._fields[0].tabIndex = 0;
  }

  _makeCell(row, column) {
    const cell = document.createElement("div");
    cell.setAttribute("role", "gridcell");
    cell.className = "square";
    const field = document.createElement("input");
    const index = this._fields.push(field) - 1;
    field.inputMode = "numeric";
    field.autocomplete = "off";
    field.tabIndex = -1; // one stop for the Tab key, arrows inside
    field.id = `square-${row + 1}-${column + 1}`;
    field.addEventListener("keydown", (event) => this._key(event, index));
    field.addEventListener("input", () => this._typed(index));
    field.addEventListener("focus", () => {
      for (const other of this._fields) other.tabIndex = other === field ? 0 : -1;
      field.select();
    });
    cell.append(field);
    return cell;
  }

  _key(event, index) {
    const move = MOVES[event.key];
    const sideways = Math.abs(move) === 1;
    if (move !== undefined) {
      event.preventDefault();
      const target = index + move;
      if (sideways && Math.floor(target / 9) !== Math.floor(index / 9)) return;
      this._fields[target]?.focus();
    } else if (event.key === "Home" || event.key === "End") {
      event.preventDefault();
      this._fields[index - (index % 9) + (event.key === "End" ? 8 : 0)].focus();
    } else if (["Delete", "Backspace", "0", ".", " "].includes(event.key)) {
      event.preventDefault();
      this._put(index, "");
      if (event.key === "Backspace") this._fields[Math.max(0, index - 1)].focus();
      else if (event.key !== "Delete") this._fields[Math.min(80, index + 1)].focus();
    }
  }

  _typed(index) {
    const digit = [...this._fields[index].value].reverse().find((c) => /[1-9]/.test(c)) ?? "";
    this._put(index, digit);
    if (digit) this._fields[Math.min(80, index + 1)].focus();
  }

  _put(index, digit) {
    if (this._locked) return;
    this.givens[index] = digit;
    this.showGivens();
    this._onEdit();
  }

  set(givens) {
    this.givens = [...givens];
    this.showGivens();
  }

  // While a puzzle is being solved nothing can be typed.
  lock(locked) {
    this._locked = locked;
    for (const field of this._fields) field.readOnly = locked;
  }

  showGivens() {
    this._draw(this.givens, () => []);
  }

  // A state of the canvas. What it says where a given stands is not shown: a given stays.
  show(state) {
    const found = onBoard(state);
    const cells = this.givens.map((given, index) => given || found[index]?.text || "");
    const position = (index) => 10 * Math.floor(index / 9) + (index % 9);
    this._draw(cells, (index) => marks(found[index], state, position(index)), state.committed);
  }

  // The digits of an answer, for a service that streams no progress.
  showAnswer(digits) {
    this._draw(this.givens.map((given, index) => given || digits[index]), () => ["done"]);
  }

  // What breaks the rules is marked in what a person typed and in what is committed. In between the model may still
  // change its mind, and a mark that comes and goes would say nothing.
  _draw(cells, marksOf, judged = true) {
    const wrong = judged ? conflicts(cells) : conflicts(this.givens);
    this._fields.forEach((field, index) => {
      const given = this.givens[index] !== "";
      if (field.value !== cells[index]) field.value = cells[index];
      const names = given ? ["given"] : ["answer", ...marksOf(index)];
      if (wrong.has(index)) names.push("conflict");
      for (const name of STATES) field.parentElement.classList.toggle(name, names.includes(name));
      const kind = given ? "given" : cells[index] ? "answer" : "empty";
      const clash = wrong.has(index) ? ", conflict" : "";
      const [row, column] = [Math.floor(index / 9) + 1, (index % 9) + 1];
      field.setAttribute("aria-label", `Row ${row}, column ${column}, ${kind}${clash}`);
      if (wrong.has(index)) field.setAttribute("aria-invalid", "true");
      else field.removeAttribute("aria-invalid");
    });
  }
}
