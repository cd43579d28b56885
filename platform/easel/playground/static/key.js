// The API key: asked for where the API wants one, kept by this tab until it is closed, and nowhere else.

const NAME = "easel-api-key";

export class Key {
  constructor() {
    this._dialog = document.getElementById("key-dialog");
    this._field = document.getElementById("key");
    this._reason = document.getElementById("key-reason");
    document.getElementById("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this._dialog.close(this._field.value.trim());
    });
    document.getElementById("key-cancel").addEventListener("click", () => this._dialog.close(""));
    this._dialog.addEventListener("cancel", () => (this._dialog.returnValue = ""));
  }

  get value() {
    return sessionStorage.getItem(NAME) ?? "";
  }

  // Resolves with whether a key was given. `reason`: what the API said.
  ask(reason) {
    this._reason.textContent = reason;
    this._field.value = "";
    this._dialog.returnValue = "";
    this._dialog.showModal();
    return new Promise((resolve) => {
      this._dialog.addEventListener(
        "close",
        () => {
          const key = this._dialog.returnValue;
          if (key) sessionStorage.setItem(NAME, key);
          resolve(key !== "");
        },
        { once: true },
      );
    });
  }

  // Does something with the key; where the API refuses it, asks for another and does it again.
  async use(act) {
    for (;;) {
      try {
        return await act(this.value);
      } catch (error) {
        if (error.status !== 401 || !(await this.ask(error.message))) throw error;
      }
    }
  }
}
