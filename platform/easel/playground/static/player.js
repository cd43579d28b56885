// Which state of a history is shown: follows a running one at a pace the eye can keep, and replays it afterwards.

export class Player {
  // `show(state, index)` draws; `onChange()` is called where playing began or ended.
  constructor(show, onChange) {
    this._show = show;
    this._onChange = onChange;
    this.pace = 400; // milliseconds that each state is shown for, at least
    this._caughtUp = [];
    this.reset(null);
  }

  reset(history) {
    clearTimeout(this._timer);
    this._timer = null;
    this._release();
    this.history = history;
    this.index = -1;
    this.playing = false;
    this._live = false; // more states are to come
    this._caughtUp = [];
  }

  // Shows states as they come, until there are no more or somebody pauses.
  follow() {
    this._live = true;
    this.playing = true;
    this._onChange();
  }

  get last() {
    return (this.history?.states.length ?? 0) - 1;
  }

  get atEnd() {
    return this.index >= this.last;
  }

  play() {
    if (!this.history) return;
    if (this.atEnd) this.index = -1;
    this.playing = true;
    this._onChange();
    this._next();
  }

  pause() {
    clearTimeout(this._timer);
    this._timer = null;
    this.playing = false;
    this._release();
    this._onChange();
  }

  seek(index) {
    this.pause();
    this.index = Math.max(0, Math.min(index, this.last));
    this._draw();
  }

  // New states are there.
  grown() {
    if (this.playing && this._timer === null) this._next();
  }

  // No more states are to come. Resolves once all of them have been shown, or somebody paused.
  async caughtUp() {
    this._live = false;
    if (!this.playing) return;
    if (this.atEnd) this.pause();
    else await new Promise((resolve) => this._caughtUp.push(resolve));
  }

  _next() {
    this._timer = null;
    if (this.atEnd) {
      if (!this._live) this.pause();
      return;
    }
    // With no pace of its own, it jumps to what is newest; with one, it hurries when it falls far behind.
    this.index = this.pace === 0 ? this.last : this.index + 1;
    this._draw();
    const behind = this.last - this.index;
    this._timer = setTimeout(() => this._next(), this.pace / Math.max(1, behind / 8));
  }

  _draw() {
    const state = this.history?.states[this.index];
    if (state) this._show(state, this.index);
  }

  _release() {
    for (const resolve of this._caughtUp.splice(0)) resolve();
  }
}
