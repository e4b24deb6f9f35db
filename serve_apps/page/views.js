// What the page shows, made of elements and text nodes only.

export function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

export const seconds = (s) => (s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(1)} s`);
const several = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** A turn of the conversation. `who` and `text` can be changed as it arrives. */
export function turn(kind, who, text) {
  const name = make("h3", {}, who);
  const words = make("p", { className: "text" }, text);
  return { name, words, element: make("article", { className: `turn ${kind}` }, name, words) };
}

export function error({ message, note }) {
  return make("p", { className: "error" }, message, note ? make("small", {}, note) : null);
}

/** What stands behind a decision's reason: each expert's score, and the numbers. */
export function decision(facts, artifact, requestId) {
  const wait = facts.predicted_wait_s;
  const rows = [
    ["Policy", facts.policy + (facts.fell_back ? ", fell back" : "")],
    ["Runner-up", facts.runner_up],
    ["Confidence", facts.confidence?.toFixed(2)],
    ["Predicted wait", wait == null ? null : seconds(wait)],
    ["Artifact", artifact && make("code", {}, artifact)],
    ["Request", requestId && make("code", {}, requestId)],
  ].filter(([, value]) => value != null && value !== "");
  const list = rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  return make("div", { className: "decision" }, scores(facts), make("dl", {}, ...list));
}

function scores(facts) {
  const ranked = Object.entries(facts.scores ?? {}).sort((a, b) => b[1] - a[1]);
  if (!ranked.length) return null;
  const max = Math.max(1, ranked[0][1]);
  const rows = ranked.map(([name, value]) => {
    const bar = make("span", { className: "bar" });
    bar.style.width = `${(100 * Math.max(0, value)) / max}%`;
    const cells = [make("td", {}, bar), make("td", { className: "number" }, value.toFixed(2))];
    const chosen = name === facts.chosen ? "chosen" : "";
    return make("tr", { className: chosen }, make("th", { scope: "row" }, name), ...cells);
  });
  return make("table", {}, make("caption", { className: "unseen" }, "Scores"), make("tbody", {}, ...rows));
}

export function expert(facts) {
  const { state, up, running, replicas, waiting_s: wait, speculation } = facts;
  const load = [several(replicas, "replica"), `${running} running`, wait ? `wait ${seconds(wait)}` : null];
  const rate = speculation?.on ? `, ${Math.round(speculation.acceptance * 100)}% of the draft accepted` : "";
  const down = !up && state === "live";
  return make(
    "li",
    {},
    make("h3", {}, facts.name, " ", make("span", { className: `state ${state}` }, state)),
    down ? make("p", { className: "error" }, "no healthy engine") : null,
    make("p", {}, load.filter(Boolean).join(" · ")),
    speculation ? make("p", {}, `speculation ${speculation.on ? "on" : "off"}${rate}`) : null,
    facts.reason ? make("p", { className: "hint" }, facts.reason) : null,
    facts.artifact ? make("p", { className: "hint" }, make("code", {}, facts.artifact)) : null,
  );
}
