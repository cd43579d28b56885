// The page: what its controls do, and which part shows what.

import { Board } from "./board.js";
import { CanvasView, drawScale, stopName, summary } from "./canvas_view.js";
import { Conversation } from "./conversation.js";
import { Key } from "./key.js";
import { Player } from "./player.js";
import { drawFailure, drawFigures, effort, plural, seconds } from "./report.js";
import { asCurl, asPython, COMPLETION_TOKENS, makeBody } from "./request.js";
import { Run } from "./run.js";
import { getJson } from "./stream.js";
import { Tiers } from "./tiers.js";
import { conflicts, EXAMPLES, isSolved, parse, readAnswer, write } from "./sudoku.js";

const MODES = ["sudoku", "chat", "completion"];
const at = (id) => document.getElementById(id);

const key = new Key();
const view = new CanvasView(at("canvas"));
const player = new Player(showState, showPlaying);
const board = new Board(at("board"), boardEdited);
const KNOBS = ["max_denoising_steps", "entropy_bound", "stability", "confidence", "deadline_ms"];
const tiers = new Tiers(
  {
    row: at("tier-row"),
    group: at("tiers"),
    says: at("tier-says"),
    knobs: Object.fromEntries(KNOBS.map((name) => [name, at(name)])),
  },
  drawRequest,
);
const conversation = new Conversation(at("talk"), at("talk-empty"), replay);

let mode = "sudoku";
let run = null; // the last one, running or not
let shown = null; // the run whose canvases are shown
let language = "curl";
let models = []; // as the service lists them
let progress = true; // whether to ask for it: a service that refused once is not asked again

// ---- what is shown of a run

function showState(state, index) {
  view.show(state);
  const canvases = shown.history.canvases();
  const place = canvases.length > 1 ? `canvas ${state.canvas + 1} of ${canvases.length} · ` : "";
  const what = state.committed ? `committed after ${plural(state.step, "step")}` : state.step ? `step ${state.step}` : "noise";
  const why = state.committed && state.stop ? ` · ${stopName(state.stop)}` : "";
  at("where").textContent = `${place}${what}${why} · ${seconds(state.at)}`;
  const slider = at("slider");
  slider.max = String(player.last);
  slider.value = String(index);
  slider.setAttribute("aria-valuetext", summary(state).slice(0, 200));
  drawCanvases(canvases, state.canvas);
  if (shown.mode === "sudoku" && state.canvas === 0 && shown.givens === write(board.givens)) board.show(state);
}

function showPlaying() {
  const live = player.playing;
  at("play").textContent = live ? "❚❚" : "▶";
  at("play").setAttribute("aria-label", live ? "Pause" : "Play");
}

function drawCanvases(canvases, current) {
  const group = at("canvases");
  group.hidden = canvases.length < 2;
  while (group.children.length > canvases.length) group.lastChild.remove();
  canvases.forEach(({ canvas, steps, committed, last }, index) => {
    let button = group.children[index];
    if (!button) {
      button = document.createElement("button");
      button.type = "button";
      group.append(button);
    }
    button.textContent = String(canvas + 1);
    button.title = `${plural(steps, "step")}${committed ? "" : " so far"}`;
    button.setAttribute("aria-label", `Canvas ${canvas + 1}, ${button.title}`);
    button.setAttribute("aria-pressed", String(canvas === current));
    button.onclick = () => player.seek(last);
  });
}

function show(which) {
  shown = which;
  player.reset(which?.history ?? null);
  view.clear(which?.mode === "sudoku");
  at("canvases").replaceChildren();
  at("where").textContent = "";
  showPlaying();
  showParts();
}

function showParts() {
  const some = (shown?.history.states.length ?? 0) > 0;
  at("player").hidden = !some;
  at("canvas").hidden = !some;
  at("canvas-empty").hidden = some;
  drawFigures(at("stats"), shown);
}

function replay(which) {
  show(which);
  player.play();
}

// ---- running

function parameter(id) {
  const text = at(id).value.trim();
  return text === "" ? null : Number(text);
}

function parameters() {
  const [temperature, seed, most] = ["temperature", "seed", "max_tokens"].map(parameter);
  return { temperature, seed, max_tokens: most, easel: tiers.options };
}

function input() {
  if (mode === "sudoku") return write(board.givens);
  if (mode === "chat") return conversation.messages(at("message").value.trim());
  return at("prompt").value;
}

// Runs one request to its end. `grow` is called as its text comes, `end(run)` once all of it has been shown; returns
// whether it went well.
async function start(grow, end) {
  if (run?.running) return false;
  const [model, given, values, started] = [at("model").value, input(), parameters(), mode];
  at("error").hidden = true;
  say(mode === "sudoku" ? "Solving …" : "Denoising …");
  busy(true);
  try {
    await key.use(async (secret) => {
      run = new Run(started, (asked) => makeBody(started, model, given, values, asked), secret, changed);
      run.progress = progress;
      run.givens = given;
      run.grow = () => grow(run);
      show(run);
      player.follow();
      await run.go();
    });
    progress = run.progress;
  } catch (error) {
    busy(false);
    player.pause();
    drawFigures(at("stats"), shown);
    drawFailure(at("error"), error);
    say("");
    return false;
  }
  busy(false);
  const done = run;
  if (shown === done) await player.caughtUp();
  drawFigures(at("stats"), shown);
  end(done);
  drawRequest();
  return true;
}

function changed() {
  run.grow();
  if (shown !== run) return;
  if (at("canvas").hidden && run.history.states.length) showParts();
  at("slider").max = String(player.last);
  drawFigures(at("stats"), shown);
  player.grown();
}

function busy(on) {
  const panel = at(`panel-${mode}`);
  const [go, stop] = [panel.querySelector(".primary"), panel.querySelector(".stop")];
  const focused = document.activeElement === (on ? go : stop);
  go.hidden = on;
  stop.hidden = !on;
  if (focused) (on ? stop : go).focus();
  for (const tab of document.querySelectorAll("[role=tab]")) tab.disabled = on;
  board.lock(on);
  clearInterval(busy.timer);
  if (on && mode === "sudoku") busy.timer = setInterval(tick, 100);
  if (!on) tick();
}

function tick() {
  at("clock").textContent = run && mode === "sudoku" ? seconds(run.elapsedMs) : "";
}

function say(text) {
  at("status").textContent = text;
}

// ---- Sudoku

function boardEdited() {
  at("puzzle").value = board.givens.some(Boolean) ? write(board.givens) : "";
  forgetAnswer();
}

function forgetAnswer() {
  if (shown?.mode === "sudoku" && !shown.running) show(null);
  at("clock").textContent = "";
  const wrong = conflicts(board.givens).size;
  say(wrong ? `${plural(wrong, "given")} in conflict: the puzzle contradicts itself.` : "");
  drawRequest();
}

function take(cells) {
  if (run?.running) return;
  board.set(cells);
  boardEdited();
}

function pasted() {
  const text = at("puzzle").value;
  const cells = parse(text);
  if (cells && !run?.running) {
    board.set(cells);
    forgetAnswer();
  } else if (text.trim()) {
    const found = [...text].filter((c) => /[0-9._*]/.test(c)).length;
    say(`${plural(found, "cell")} of 81 so far.`);
  }
}

async function solve() {
  board.showGivens();
  await start(() => {}, judge);
}

function judge(done) {
  if (done.stopped) return say(`Stopped after ${seconds(done.totalMs)}.`);
  const digits = readAnswer(done.text);
  if (!digits) return say(`The model says: ${done.text.trim() || "nothing"} (${effort(done)})`);
  if (shown !== done || !done.history.states.length) board.showAnswer(digits);
  const against = board.givens.filter((given, index) => given && given !== digits[index]).length;
  const clashes = conflicts(digits).size;
  if (isSolved(digits) && !against) return say(`Solved: every row, column and box is right. ${effort(done)}.`);
  const faults = [];
  if (clashes) faults.push(`${plural(clashes, "cell")} in conflict`);
  if (against) faults.push(`${plural(against, "given")} contradicted`);
  return say(`Not a solution: ${faults.join(", ")}. ${effort(done)}.`);
}

// ---- chat and completion

function ended(done) {
  say(done.stopped ? `Stopped after ${seconds(done.totalMs)}.` : `Done: ${effort(done)}.`);
}

async function send() {
  const field = at("message");
  const text = field.value.trim();
  if (!text || run?.running) return;
  let turn = null; // made once the request is on its way, since its messages are those before
  const asked = start(
    (running) => turn.grow(running),
    (done) => {
      if (done.stopped && !done.text) turn.drop();
      else turn.keep(done);
      ended(done);
    },
  );
  turn = conversation.ask(text);
  field.value = "";
  if (!(await asked)) {
    turn.drop();
    field.value = text;
  }
  drawRequest();
}

async function complete() {
  if (run?.running) return;
  const output = at("output");
  output.textContent = "";
  await start((running) => (output.textContent = running.text), ended);
}

// ---- the request to copy

function drawRequest() {
  const body = makeBody(mode, at("model").value, input(), parameters(), progress);
  const write = language === "curl" ? asCurl : asPython;
  at("code").textContent = write(mode, body, location.origin, key.value !== "");
}

async function copy() {
  const text = at("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
    say("The request is on the clipboard.");
  } catch {
    getSelection().selectAllChildren(at("code"));
    say("The request is selected: copy it with your keyboard.");
  }
}

// ---- modes

function choose(name, focus = false) {
  if (run?.running) return;
  mode = MODES.includes(name) ? name : MODES[0];
  for (const each of MODES) {
    const tab = at(`tab-${each}`);
    tab.setAttribute("aria-selected", String(each === mode));
    tab.tabIndex = each === mode ? 0 : -1;
    at(`panel-${each}`).hidden = each !== mode;
  }
  if (focus) at(`tab-${mode}`).focus();
  at("max_tokens").placeholder = mode === "completion" ? String(COMPLETION_TOKENS) : "auto";
  at("error").hidden = true;
  say("");
  history.replaceState(null, "", `#${mode}`);
  drawRequest();
}

function tabKey(event) {
  const index = MODES.indexOf(mode);
  const target = { ArrowRight: index + 1, ArrowLeft: index + 2, Home: 0, End: 2 }[event.key];
  if (target === undefined) return;
  event.preventDefault();
  choose(MODES[target % 3], true);
}

// ---- the start

function wire() {
  for (const name of MODES) at(`tab-${name}`).addEventListener("click", () => choose(name));
  document.querySelector("[role=tablist]").addEventListener("keydown", tabKey);
  addEventListener("hashchange", () => choose(location.hash.slice(1)));
  for (const { name, givens } of EXAMPLES) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => take(parse(givens)));
    at("examples").append(button);
  }
  at("solve").addEventListener("click", solve);
  at("send").addEventListener("click", send);
  at("complete").addEventListener("click", complete);
  for (const button of document.querySelectorAll(".stop")) button.addEventListener("click", () => run?.stop());
  at("clear").addEventListener("click", () => take(Array(81).fill("")));
  at("unsolve").addEventListener("click", () => take(board.givens));
  at("puzzle").addEventListener("input", pasted);
  at("message").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  at("forget").addEventListener("click", () => {
    if (run?.running) return;
    conversation.forget();
    show(null);
    say("");
    drawRequest();
  });
  for (const id of ["message", "prompt", "temperature", "seed", "max_tokens"]) {
    at(id).addEventListener("input", drawRequest);
  }
  at("model").addEventListener("input", chooseModel);
  at("pace").addEventListener("change", () => (player.pace = Number(at("pace").value)));
  at("play").addEventListener("click", () => (player.playing ? player.pause() : player.play()));
  at("slider").addEventListener("input", () => player.seek(Number(at("slider").value)));
  for (const name of ["curl", "python"]) {
    at(`as-${name}`).addEventListener("click", () => {
      language = name;
      for (const each of ["curl", "python"]) at(`as-${each}`).setAttribute("aria-pressed", String(each === name));
      drawRequest();
    });
  }
  at("copy").addEventListener("click", copy);
}

function chooseModel() {
  tiers.set(models.find(({ id }) => id === at("model").value)?.easel);
  drawRequest();
}

async function readService() {
  try {
    models = (await key.use((secret) => getJson("/v1/models", secret))).data;
    at("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
    chooseModel();
    const { version, system_fingerprint: fingerprint } = await getJson("/version", key.value);
    at("version").textContent = `Easel ${version} · ${fingerprint}`;
  } catch (error) {
    drawFailure(at("error"), error);
  }
  drawRequest();
}

if (matchMedia("(prefers-reduced-motion: reduce)").matches) at("pace").value = "0";
player.pace = Number(at("pace").value);
drawScale(at("scale"));
wire();
show(null);
choose(location.hash.slice(1));
take(parse(EXAMPLES[0].givens));
readService();
