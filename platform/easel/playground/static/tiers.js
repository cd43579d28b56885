// How much denoising an answer may take: the tiers that the model has, and limits given beside the tier. Knows the
// controls of its own, and not what is sent besides.

const UNITS = { entropy_bound: " nats", confidence: " nats", deadline_ms: " ms" };

export class Tiers {
  // `row` holds everything, `group` the buttons, `says` the limits of the chosen tier, `knobs` inputs by name.
  constructor({ row, group, says, knobs }, onChange) {
    this._row = row;
    this._group = group;
    this._says = says;
    this._knobs = knobs;
    this._onChange = onChange;
    this._tiers = {};
    this._standard = "";
    this._chosen = "";
    for (const input of Object.values(knobs)) input.addEventListener("input", onChange);
  }

  // `own`: what the service tells of the model as `easel`; without it there is nothing to choose.
  set(own) {
    this._tiers = own?.tiers ?? {};
    this._standard = own?.default_tier ?? "";
    this._row.hidden = !Object.keys(this._tiers).length;
    if (own?.max_denoising_steps) this._knobs.max_denoising_steps.max = String(own.max_denoising_steps);
    const buttons = Object.keys(this._tiers).map((name) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => {
        this._choose(name);
        this._onChange();
      });
      return button;
    });
    this._group.replaceChildren(...buttons);
    this._choose(this._chosen in this._tiers ? this._chosen : this._standard);
  }

  _choose(name) {
    this._chosen = name;
    for (const button of this._group.children) {
      button.setAttribute("aria-pressed", String(button.textContent === name));
    }
    const limits = this._tiers[name] ?? {};
    const told = [];
    if (limits.max_denoising_steps) told.push(`at most ${limits.max_denoising_steps} steps a canvas`);
    if (limits.stability !== undefined) {
      told.push(limits.stability ? `unchanged for ${limits.stability + 1} steps` : "as soon as it is sure");
    }
    this._says.textContent = told.join(", ");
    for (const [knob, input] of Object.entries(this._knobs)) {
      const value = limits[knob];
      input.placeholder = value === undefined ? "none" : `${value}${UNITS[knob] ?? ""}`;
    }
  }

  // The request's `easel` object: only what differs from what the model does by itself; null if nothing does.
  get options() {
    const options = {};
    if (this._chosen && this._chosen !== this._standard) options.tier = this._chosen;
    for (const [name, input] of Object.entries(this._knobs)) {
      const text = input.value.trim();
      if (text !== "") options[name] = Number(text);
    }
    return Object.keys(options).length ? options : null;
  }
}
