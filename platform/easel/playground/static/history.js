// What every canvas of an answer looked like after each state that was streamed. Knows no page.
//
// A state: { canvas, step, length, committed, stop, tokens, cells, changed, at }
//   cells    one for each position: null while nothing is known of it, or { id, text, entropy, accepted, flips }
//   changed  the positions that this state revised
//   tokens   of a committed canvas, how many positions belong to the answer
//   at       milliseconds since the request was sent
// Cells are never written to: states share those that did not change.

export class History {
  constructor() {
    this.states = [];
    this.length = 0; // positions in a canvas, from the last one seen
  }

  // Takes an `easel.progress` object.
  add(progress, at) {
    const { canvas, step = 0, canvas_length: length, committed = false, changes = [] } = progress;
    this.length = length;
    let last = this.states.at(-1);
    if (!last || last.canvas !== canvas) last = this.begin(canvas, length, last ? last.at : at);
    const cells = last.cells.slice();
    const changed = new Set();
    for (const { position, token_id: id, text, entropy, accepted } of changes) {
      if (position < 0 || position >= length) continue;
      const before = cells[position];
      const flipped = before !== null && before.id !== id;
      cells[position] = {
        id,
        text: text ?? "",
        entropy: entropy ?? before?.entropy ?? 0,
        accepted: accepted ?? true,
        flips: (before?.flips ?? 0) + (flipped ? 1 : 0),
      };
      if (before === null || flipped) changed.add(position);
    }
    const done = committed ? (progress.steps ?? step) : step;
    const tokens = committed ? (progress.tokens ?? length) : null;
    this.states.push({ canvas, step: done, length, committed, stop: progress.stop ?? "", tokens, cells, changed, at });
  }

  // A canvas begins as noise, which is not streamed: nothing is known of any position.
  begin(canvas, length, at) {
    const cells = new Array(length).fill(null);
    const state = { canvas, step: 0, length, committed: false, stop: "", tokens: null, cells, changed: new Set(), at };
    this.states.push(state);
    return state;
  }

  // The canvases in order: { canvas, first, last, steps, committed, stop }, first and last being indices of states.
  canvases() {
    const found = [];
    this.states.forEach((state, index) => {
      if (found.at(-1)?.canvas !== state.canvas) found.push({ canvas: state.canvas, first: index });
      const { step: steps, committed, stop } = state;
      Object.assign(found.at(-1), { last: index, steps, committed, stop });
    });
    return found;
  }
}

// Nats above which a position is in the next level. The last level is everything beyond.
export const LEVELS = [0.01, 0.1, 0.5, 1, 2];

export function level(entropy) {
  const found = LEVELS.findIndex((bound) => entropy < bound);
  return found < 0 ? LEVELS.length : found;
}
