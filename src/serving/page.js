// Asks the server, shows the answers token by token, and for each token what else the model could have said.
// The protocol is in docs/serving.md. All text enters the page as text, never as markup.

const NUMBERS = ["temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed"];
const NEED_TEMPERATURE = ["top_k", "top_p"];
const NAMES = { base: "base", adapter: "with adapter" };
const REASONS = { stop: "stop text", end: "ended by itself", length: "length limit" };

const at = (id) => document.getElementById(id);
const tokens = new WeakMap(); // span -> its token event
let running = null; // the AbortController of the answer under way

// --- The model and the controls ---

async function introduce() {
  const about = await (await fetch("model")).json();
  at("model").textContent = about.description;
  at("sides").hidden = !about.adapter;
  if (!about.adapter) document.querySelector("[name=sides][value=base]").checked = true;
  for (const name of NUMBERS) {
    [at(name).min, at(name).max] = about.ranges[name];
    at(name).value = about.defaults[name] ?? "";
  }
  at("top_p").min = 0; // numbers count their steps from min
  enableDraws();
}

function enableDraws() {
  for (const name of NEED_TEMPERATURE) at(name).disabled = !(at("temperature").valueAsNumber > 0);
}

function question() {
  const sides = document.querySelector("[name=sides]:checked").value.split(" ");
  const row = { instruction: at("instruction").value.trim(), input: at("input").value.trim(), sides };
  for (const name of NUMBERS) {
    if (!at(name).disabled && at(name).value !== "") row[name] = at(name).valueAsNumber;
  }
  return row;
}

// --- Asking ---

async function ask(event) {
  event.preventDefault();
  if (running || !at("ask").reportValidity()) return;
  running = new AbortController();
  at("submit").disabled = !(at("stop").disabled = false);
  at("answers").replaceChildren();
  show(null);
  say("");
  let answer = null;
  try {
    for await (const event of events(question(), running.signal)) answer = take(event, answer);
    if (answer?.busy()) throw new Error("the server ended the answer");
  } catch (error) {
    answer?.end(error.name === "AbortError" ? "stopped" : "broken off");
    if (error.name !== "AbortError") say(error instanceof TypeError ? "The server cannot be reached." : error.message);
  } finally {
    running = null;
    at("submit").disabled = !(at("stop").disabled = true);
  }
}

async function* events(row, signal) {
  const headers = { "content-type": "application/json" };
  const response = await fetch("answer", { method: "POST", headers, body: JSON.stringify(row), signal });
  if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error ?? response.statusText);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

function take(event, answer) {
  switch (event.event) {
    case "wait":
      say("Waiting for another answer to end …");
      return answer;
    case "begin":
      say("");
      return new Answer(event.side);
    case "token":
      answer.add(event);
      return answer;
    case "end":
      answer.end(`${event.tokens} tokens, ${(event.tokens / event.seconds).toFixed(1)} per second, ${REASONS[event.reason]}`);
      return answer;
    default:
      throw new Error(event.message);
  }
}

const say = (text) => (at("message").textContent = text);
const stop = () => running?.abort();

class Answer {
  constructor(side) {
    const section = at("answer").content.cloneNode(true).firstElementChild;
    section.querySelector("h2").textContent = NAMES[side];
    section.dataset.side = side;
    this.text = section.querySelector(".text");
    this.status = section.querySelector(".status");
    this.status.textContent = "reading the question …";
    at("answers").append(section);
  }

  add(event) {
    const span = document.createElement("span");
    span.className = "token";
    span.textContent = event.text;
    span.tabIndex = this.text.childElementCount ? -1 : 0; // one stop for Tab, the arrow keys do the rest
    if (event.p < 0.5) span.classList.add("unsure");
    if (!event.text) span.classList.add(event.piece === "</s>" ? "last" : "part");
    tokens.set(span, event);
    this.text.append(span);
    this.status.textContent = `${this.text.childElementCount} tokens`;
  }

  end(status) {
    this.text.setAttribute("aria-busy", "false"); // now a screen reader reads it, in one piece
    this.status.textContent = status;
  }

  busy() {
    return this.text.getAttribute("aria-busy") === "true";
  }
}

// --- The alternatives of a token ---

function show(span) {
  document.querySelector(".token.shown")?.classList.remove("shown");
  const token = span && tokens.get(span);
  at("choices").hidden = !token;
  if (!token) return;
  span.classList.add("shown");
  span.setAttribute("aria-describedby", "choices");
  const elsewhere = token.top.every((other) => other.id !== token.id);
  const rows = elsewhere ? [...token.top, token] : token.top;
  at("choices").querySelector("caption").textContent = "Most probable here";
  at("choices").querySelector("tbody").replaceChildren(...rows.map((other) => row(other, other.id === token.id)));
  place(at("choices"), span.getClientRects()[0] ?? span.getBoundingClientRect());
}

function row(token, chosen) {
  const line = document.createElement("tr");
  line.classList.toggle("chosen", chosen);
  line.style.setProperty("--p", token.p);
  const name = document.createElement("th");
  name.scope = "row";
  name.textContent = token.piece.replaceAll(" ", "␣").replaceAll("\n", "⏎");
  const share = document.createElement("td");
  share.textContent = `${(100 * token.p).toFixed(token.p < 0.01 ? 2 : 1)} %`;
  line.append(name, share);
  return line;
}

function place(box, beside) {
  const left = Math.min(beside.left, document.documentElement.clientWidth - box.offsetWidth - 12);
  const below = beside.bottom + 6 + box.offsetHeight < document.documentElement.clientHeight;
  box.style.left = `${Math.max(left, 12) + scrollX}px`;
  box.style.top = `${(below ? beside.bottom + 6 : Math.max(beside.top - box.offsetHeight - 6, 6)) + scrollY}px`;
}

function walk(span, step) {
  const next = step > 0 ? span.nextElementSibling : span.previousElementSibling;
  if (!next) return;
  [span.tabIndex, next.tabIndex] = [-1, 0];
  next.focus();
}

// --- What the reader does ---

at("ask").addEventListener("submit", ask);
at("stop").addEventListener("click", stop);
at("temperature").addEventListener("input", enableDraws);

for (const box of [at("instruction"), at("input")]) {
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) ask(event);
  });
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    stop();
    show(null);
  }
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && event.target.classList.contains("token")) walk(event.target, step);
});

for (const kind of ["pointerover", "focusin", "click"]) {
  at("answers").addEventListener(kind, (event) => show(event.target.closest(".token")));
}
at("answers").addEventListener("pointerleave", () => show(document.activeElement.closest(".token")));
at("answers").addEventListener("focusout", () => show(null));

introduce().catch(() => say("The server cannot be reached."));
