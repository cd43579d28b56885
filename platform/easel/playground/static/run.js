// One request from its sending to its end: its text, its states, its figures. Knows no page.

import { History } from "./history.js";
import { path } from "./request.js";
import { ApiFailure, stream } from "./stream.js";

export class Run {
  // `onChange` is called after each event, `makeBody(progress)` makes what is sent.
  constructor(mode, makeBody, key, onChange) {
    this.mode = mode;
    this.text = "";
    this.history = new History();
    this.usage = null;
    this.finish = ""; // why it finished, in Easel's words
    this.canvases = []; // { denoising_steps, stop } as the API sums them up at the end
    this.firstMs = null; // to the first committed text
    this.totalMs = null;
    this.running = false;
    this.stopped = false;
    this.progress = true; // whether the service streams it
    this._makeBody = makeBody;
    this._key = key;
    this._onChange = onChange;
    this._abort = new AbortController();
  }

  stop() {
    this._abort.abort();
  }

  get elapsedMs() {
    return this.totalMs ?? (this.running ? performance.now() - this._sent : 0);
  }

  // Resolves when it has ended or was stopped; throws ApiFailure.
  async go() {
    this.running = true;
    try {
      await this._read();
    } catch (error) {
      // A service without progress refuses to be asked for it: the answer is then shown canvas by canvas.
      const refused = error instanceof ApiFailure && error.status === 400 && error.param.endsWith("include_progress");
      if (!refused) throw error;
      this.progress = false;
      await this._read();
    } finally {
      this.running = false;
      if (this._sent !== undefined) this.totalMs = performance.now() - this._sent;
    }
  }

  async _read() {
    this._sent = performance.now();
    try {
      for await (const event of stream(path(this.mode), this._makeBody(this.progress), this._key, this._abort.signal)) {
        this._take(event, performance.now() - this._sent);
        this._onChange();
      }
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      this.stopped = true;
    }
  }

  _take(event, at) {
    const progress = event.easel?.progress;
    if (progress && (progress.choice ?? 0) === 0) this.history.add(progress, at);
    if (event.usage) this.usage = event.usage;
    const choice = event.choices?.[0];
    if (!choice) return;
    const text = choice.text ?? choice.delta?.content ?? "";
    if (text && this.firstMs === null) this.firstMs = at;
    this.text += text;
    if (choice.finish_reason) {
      this.finish = choice.easel?.finish_reason ?? choice.finish_reason;
      this.canvases = choice.easel?.canvases ?? [];
    }
  }
}
