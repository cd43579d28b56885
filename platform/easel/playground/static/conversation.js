// The chat so far: what was said, and the elements that show it. Text goes in as text, never as markup.

const NAMES = { user: "You", assistant: "Model" };

export class Conversation {
  // `onReplay(run)` is called where somebody wants to see an earlier answer's canvases again.
  constructor(log, empty, onReplay) {
    this._log = log;
    this._empty = empty;
    this._onReplay = onReplay;
    this.forget();
  }

  forget() {
    this._said = []; // { role, content }, as the API takes them
    this._log.replaceChildren(this._empty);
  }

  // The messages of a request: all so far and `text`, or the last request's where `text` is empty.
  messages(text) {
    if (text) return [...this._said, { role: "user", content: text }];
    return this._said.slice(0, this._said.findLastIndex(({ role }) => role === "user") + 1);
  }

  // Shows a question, and where its answer is going to be. Returns what keeps that answer.
  ask(text) {
    this._empty.remove();
    this._said.push({ role: "user", content: text });
    const question = this._turn("user", text);
    const turn = this._turn("assistant", "");
    turn.element.classList.add("pending");
    const scrolled = () => (this._log.scrollTop = this._log.scrollHeight);
    scrolled();
    return {
      grow: (run) => {
        if (turn.text.textContent === run.text) return;
        turn.text.textContent = run.text;
        scrolled();
      },
      // The answer is complete: it is part of what is said from now on.
      keep: (run) => {
        turn.element.classList.remove("pending");
        turn.text.textContent = run.text;
        this._said.push({ role: "assistant", content: run.text });
        if (run.history.states.length) turn.element.append(this._replay(run));
        scrolled();
      },
      // There is no answer, so the question was never asked.
      drop: () => {
        this._said.pop();
        question.element.remove();
        turn.element.remove();
        if (!this._said.length) this._log.append(this._empty);
      },
    };
  }

  _turn(role, content) {
    const element = document.createElement("div");
    element.className = `turn ${role}`;
    const name = document.createElement("p");
    name.className = "name";
    name.textContent = NAMES[role];
    const text = document.createElement("div");
    text.className = "text";
    text.textContent = content;
    element.append(name, text);
    this._log.append(element);
    return { element, text };
  }

  _replay(run) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "replay";
    button.textContent = "Replay its canvases";
    button.addEventListener("click", () => this._onReplay(run));
    return button;
  }
}
