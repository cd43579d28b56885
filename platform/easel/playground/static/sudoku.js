// Sudoku as text: puzzles in, boards out, and what breaks the rules. Knows no page and cannot solve.

export const EXAMPLES = [
  { name: "Gentle", givens: "200654370587293060046000250019000023852906014034020090000070042425160900970042000" },
  { name: "Medium", givens: "100308050078600042054100900000830501020700300000960020030001000080206009046000010" },
  { name: "Hard", givens: "500090600090006800003508720070000000400000000005000403000060200000800070960230005" },
  { name: "Stubborn", givens: "090080003004001000000904002070000801030040000201000009000350700600000300087600000" },
];

const UNITS = [...Array(9).keys()].flatMap((n) => {
  const nine = [...Array(9).keys()];
  const corner = 27 * Math.floor(n / 3) + 3 * (n % 3);
  return [nine.map((i) => 9 * n + i), nine.map((i) => 9 * i + n), nine.map((i) => corner + 9 * Math.floor(i / 3) + (i % 3))];
});

// 81 cells, "" for an empty one, from whatever a puzzle is written as; null where there are not 81.
export function parse(text) {
  const cells = [...text].filter((c) => /[0-9._*]/.test(c)).map((c) => (/[1-9]/.test(c) ? c : ""));
  return cells.length === 81 ? cells : null;
}

export function write(cells) {
  return cells.map((cell) => cell || ".").join("");
}

// Cells that share a row, column or box with the same digit.
export function conflicts(cells) {
  const found = new Set();
  for (const unit of UNITS) {
    for (const a of unit) {
      if (cells[a] && unit.some((b) => b !== a && cells[b] === cells[a])) found.add(a);
    }
  }
  return found;
}

export function isSolved(cells) {
  return cells.every((cell) => cell) && conflicts(cells).size === 0;
}

// The answer's digits by cell, or null where the text is not nine lines of nine digits.
export function readAnswer(text) {
  const digits = [...text].filter((c) => !/\s/.test(c));
  return digits.length === 81 && digits.every((c) => /[1-9]/.test(c)) ? digits : null;
}

// For each cell of the board the cell of a canvas that says it: nine lines of nine digits and a line's end, one
// character a position. null where that position holds no digit (yet).
export function onBoard(state) {
  return [...Array(81).keys()].map((index) => {
    const found = state.cells[10 * Math.floor(index / 9) + (index % 9)];
    return found && /^[1-9]$/.test(found.text) ? found : null;
  });
}
