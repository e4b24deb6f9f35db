// The page's parts at work: the chat, the experts' list, the router's form, and the question for a key.

import { RouterError, ask, events, key } from "./wire.js";
import * as views from "./views.js";

const POLL_MS = 2000;
const at = (id) => document.getElementById(id);
const talk = []; // the messages of the conversation, as the next request sends them
let answering = null; // the AbortController of the answer under way

// --- the key ---------------------------------------------------------------------------------------------

let question = null; // one for all requests that were refused while it is open

function askForKey(why) {
  question ??= new Promise((resolve) => {
    const dialog = at("key-dialog");
    at("key-why").textContent = why;
    at("key").value = key.get();
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "use"), { once: true });
    dialog.showModal();
  }).then((use) => {
    question = null;
    if (use) key.set(at("key").value.trim());
    at("key").value = "";
    return use;
  });
  return question;
}

const request = (path, options) => ask(path, { ...options, askForKey });

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  at("key-dialog").close("use");
});
at("key-cancel").addEventListener("click", () => at("key-dialog").close());
at("key-button").addEventListener("click", async () => {
  const why = key.get() ? "This tab has a key." : "A router with keys asks for one.";
  if (await askForKey(why)) poll();
});

// --- the models ------------------------------------------------------------------------------------------

async function loadModels() {
  const { data: cards } = await (await request("v1/models")).json();
  const data = cards.filter((card) => !card.embeds); // which a chat cannot ask
  const routed = data.map((card) => card.id).filter((id) => id === "auto" || id.startsWith("largeforge/"));
  const experts = data.map((card) => card.id).filter((id) => !routed.includes(id));
  offer(at("policy"), [["", routed]]);
  offer(at("model"), [["The router chooses", routed], ["Experts", experts]]);
}

/** Fills a select with labelled groups of names; the choice stays if it is still there. */
function offer(select, groups) {
  const chosen = select.value;
  const full = groups.map(([label, names]) => {
    const options = names.map((value) => views.make("option", { value, selected: value === chosen }, value));
    return label ? [views.make("optgroup", { label }, ...options)] : options;
  });
  select.replaceChildren(...full.flat());
}

// --- the chat --------------------------------------------------------------------------------------------

const log = at("log");

function show(element) {
  at("empty").hidden = true;
  log.append(element);
  element.scrollIntoView({ block: "end" });
}

/** Runs `change`, and follows the end of the log if the reader was there: above the message's form. */
function following(change) {
  const end = log.lastElementChild.getBoundingClientRect().bottom;
  const near = end < at("chat").getBoundingClientRect().top + 40;
  change();
  if (near) log.lastElementChild.scrollIntoView({ block: "end" });
}

function busy(controller) {
  answering = controller;
  log.ariaBusy = String(controller !== null); // a screen reader speaks an answer once it is whole
  if (document.activeElement === at(controller ? "send" : "stop")) at("message").focus();
  at("send").hidden = controller !== null;
  at("stop").hidden = controller === null;
  at("clear").hidden = controller !== null || !log.querySelector("article");
}

async function send(text) {
  const began = performance.now();
  const model = at("model").value;
  show(views.turn("user", "You", text).element);
  const answer = views.turn("expert", model === "auto" ? "Router" : model, "");
  show(answer.element);
  busy(new AbortController());
  say("Waiting for the first word");
  let end;
  try {
    end = await receive(answer, { model, messages: [...talk, { role: "user", content: text }] }, began);
    say(end);
  } catch (error) {
    end = failed(answer, error);
  } finally {
    busy(null);
  }
  const words = answer.words.textContent;
  if (words) talk.push({ role: "user", content: text }, { role: "assistant", content: words });
  else at("message").value ||= text; // nothing was answered, so it can be sent again
  if (end) following(() => answer.element.append(views.make("p", { className: "end hint" }, end)));
}

/** Writes the answer as it arrives. Gives the line under it. */
async function receive(answer, body, began) {
  const { signal } = answering;
  const wanted = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request("v1/chat/completions", { body: wanted, signal });
  explain(answer, response.headers);
  let first = null;
  let usage = null;
  let finish = "stop";
  for await (const event of events(response)) {
    const choice = event.choices?.[0];
    usage = event.usage ?? usage;
    finish = choice?.finish_reason ?? finish;
    if (!choice?.delta?.content) continue;
    if (first === null) say("Answering");
    first ??= performance.now();
    following(() => answer.words.append(choice.delta.content));
  }
  const facts = [
    finish === "length" && "cut at the longest answer",
    usage && `${usage.completion_tokens} tokens`,
    first && `first word after ${views.seconds((first - began) / 1000)}`,
    `${views.seconds((performance.now() - began) / 1000)} in all`,
  ];
  return facts.filter(Boolean).join(" · ");
}

/** Names who answers, and says why, from the reply's headers. */
function explain(answer, headers) {
  const expert = headers.get("x-largeforge-expert");
  if (!expert) return;
  answer.name.textContent = expert;
  const facts = JSON.parse(headers.get("x-largeforge-decision"));
  const why = views.decision(facts, headers.get("x-largeforge-artifact"), headers.get("x-request-id"));
  const head = views.make("summary", {}, facts.reason);
  following(() => answer.element.append(views.make("details", {}, head, why)));
}

function failed(answer, error) {
  if (error.name === "AbortError") {
    say("Stopped");
    return "stopped";
  }
  if (!(error instanceof RouterError)) throw error;
  following(() => answer.element.append(views.error(error)));
  say("Failed");
  return "";
}

function say(text) {
  at("status").textContent = text;
}

at("chat").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("message").value.trim();
  if (!text || answering) return;
  at("message").value = "";
  send(text);
});
at("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("chat").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !question) answering?.abort();
});
at("stop").addEventListener("click", () => answering?.abort());
at("clear").addEventListener("click", () => {
  talk.length = 0;
  log.replaceChildren(at("empty"));
  at("empty").hidden = false;
  busy(null);
  say("");
  at("message").focus();
});

// --- the router's form -----------------------------------------------------------------------------------

at("route").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = { model: at("policy").value, messages: [{ role: "user", content: at("prompt").value }] };
  at("decide").disabled = true;
  try {
    const facts = await (await request("v1/route", { body })).json();
    const head = [views.make("h3", {}, facts.chosen), views.make("p", {}, facts.reason)];
    at("decision").replaceChildren(...head, views.decision(facts, facts.artifact, facts.request_id));
  } catch (error) {
    if (!(error instanceof RouterError)) throw error;
    at("decision").replaceChildren(views.error(error));
  } finally {
    at("decide").disabled = false;
  }
});

// --- the experts -----------------------------------------------------------------------------------------

let timer = null;
let drawn = new Map(); // name -> what was drawn, so that a poll changes only what has changed
let offered = null; // the experts' states for which the models were asked

async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  let waitMs = POLL_MS;
  try {
    const { data } = await (await request("v1/experts")).json();
    draw(data);
    const states = JSON.stringify(data.map((facts) => [facts.name, facts.state]));
    if (states !== offered) await loadModels();
    offered = states;
    at("experts-note").textContent = data.length ? "" : "The router has none.";
  } catch (error) {
    if (!(error instanceof RouterError)) throw error;
    at("experts-note").replaceChildren(views.error(error));
    if (error.status === 401) return; // until there is a key
    waitMs = Math.max(POLL_MS, error.retryAfter * 1000);
  }
  clearTimeout(timer);
  timer = setTimeout(poll, waitMs);
}

function draw(data) {
  const now = new Map();
  for (const facts of data) {
    const text = JSON.stringify(facts);
    const before = drawn.get(facts.name);
    now.set(facts.name, before?.text === text ? before : { text, element: views.expert(facts) });
  }
  const shown = [...at("experts").children];
  const wanted = [...now.values()].map((one) => one.element);
  if (shown.length !== wanted.length || shown.some((element, index) => element !== wanted[index])) {
    at("experts").replaceChildren(...wanted);
  }
  drawn = now;
}

document.addEventListener("visibilitychange", poll);
poll();
at("message").focus();
