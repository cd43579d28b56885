// What is said about a run: its figures, its failure, and one sentence for everybody, screen readers among them.

import { stopName } from "./canvas_view.js";

export function seconds(ms) {
  return ms < 10_000 ? `${(ms / 1000).toFixed(2)} s` : `${(ms / 1000).toFixed(1)} s`;
}

function rounded(number) {
  return Number.isFinite(number) ? String(Math.round(number * 10) / 10) : "–";
}

export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

// [name, value] of each figure; what is not known yet is a dash.
function figures(run) {
  const known = run?.canvases.length
    ? run.canvases.map(({ denoising_steps: steps, stop }) => ({ steps, stop }))
    : (run?.history.canvases() ?? []);
  const steps = known.reduce((sum, canvas) => sum + canvas.steps, 0);
  const tokens = run?.usage?.completion_tokens;
  const stops = [...new Set(known.map((canvas) => canvas.stop).filter(Boolean))].map(stopName);
  return [
    ["Tier", run?.usage?.easel?.tier ?? "–"],
    ["Canvases", known.length || "–"],
    ["Denoising steps", known.length > 1 ? `${steps} (${rounded(steps / known.length)} a canvas)` : steps || "–"],
    ["Tokens per forward", tokens !== undefined && steps ? rounded(tokens / steps) : "–"],
    ["Tokens", tokens ?? "–"],
    ["Prompt tokens", run?.usage?.prompt_tokens ?? "–"],
    ["Time", run?.totalMs != null ? seconds(run.totalMs) : "–"],
    ["First canvas after", run?.firstMs != null ? seconds(run.firstMs) : "–"],
    ["Canvas ended", stops.join(", ") || "–"],
    ["Answer ended", run?.finish || (run?.stopped ? "stopped by you" : "–")],
  ];
}

export function drawFigures(list, run) {
  const rows = figures(run).map(([name, value]) => {
    const row = document.createElement("div");
    const term = document.createElement("dt");
    const figure = document.createElement("dd");
    term.textContent = name;
    figure.textContent = String(value);
    row.append(term, figure);
    return row;
  });
  list.replaceChildren(...rows);
}

export function drawFailure(box, error) {
  const title = document.createElement("p");
  title.className = "message";
  title.textContent = error.message;
  const facts = document.createElement("dl");
  const known = { status: error.status, code: error.code, param: error.param, type: error.type, request: error.requestId };
  for (const [name, value] of Object.entries(known)) {
    if (!value) continue;
    const term = document.createElement("dt");
    const fact = document.createElement("dd");
    term.textContent = name;
    fact.textContent = String(value);
    facts.append(term, fact);
  }
  box.replaceChildren(title, facts);
  box.hidden = false;
}

// "4 denoising steps, 0.82 s"
export function effort(run) {
  const parts = [];
  const steps = run.usage?.easel?.denoising_steps;
  if (steps !== undefined) parts.push(plural(steps, "denoising step"));
  parts.push(seconds(run.totalMs));
  return parts.join(", ");
}
