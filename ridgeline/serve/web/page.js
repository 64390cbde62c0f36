"use strict";
const $ = (id) => document.getElementById(id);
const turns = [];
let running = null;

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function follow(change) {
  const log = $("log"), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function bubble(role, text) {
  document.querySelector(".hint")?.remove();
  const row = element("div", "row " + role), box = element("div", "turn " + role, text), note = element("div", "note");
  row.append(box, note);
  $("log").append(row);
  $("log").scrollTop = $("log").scrollHeight;
  return [box, note];
}

async function* events(response) {
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function ask(text) {
  turns.push({ role: "user", content: text });
  bubble("user", text);
  const [box, note] = bubble("assistant", "");
  running = new AbortController();
  $("send").textContent = "Stop";
  const started = performance.now();
  let first = 0, answer = "", tokens = 0;
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      signal: running.signal,
      body: JSON.stringify({
        messages: turns,
        stream: true,
        stream_options: { include_usage: true },
        temperature: Number($("temperature").value),
        max_tokens: Number($("max").value),
      }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) tokens = event.usage.completion_tokens;
      const piece = event.choices.length ? event.choices[0].delta.content : "";
      if (!piece) continue;
      if (!first) first = performance.now();
      answer += piece;
      follow(() => { box.textContent = answer; });
    }
    const seconds = (performance.now() - first) / 1000;
    const rate = tokens > 1 && seconds > 0 ? ` · ${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    const waited = first ? ` · first after ${Math.round(first - started)} ms` : "";
    follow(() => { note.textContent = `${tokens} tokens${waited}${rate}`; });
  } catch (error) {
    follow(() => { note.textContent = error.name === "AbortError" ? "stopped" : answer ? error.message : ""; });
    if (error.name !== "AbortError" && !answer) {
      box.classList.add("error");
      box.textContent = error.message;
    }
  }
  if (answer) turns.push({ role: "assistant", content: answer });
  else turns.pop();
  running = null;
  $("send").textContent = "Send";
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  ask(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("ask").requestSubmit(); }
});
$("clear").addEventListener("click", () => {
  if (running) running.abort();
  turns.length = 0;
  $("log").replaceChildren();
});

const count = (v) => v.toLocaleString("en-US");
const NOW = [
  ["requests running", "ridgeline_requests_running", count],
  ["requests waiting", "ridgeline_requests_waiting", count],
  ["memory", "process_resident_memory_bytes", (v) => (v / 2 ** 20).toFixed(0) + " MiB"],
  ["KV cache held", "ridgeline_kv_usage_ratio", (v) => (100 * v).toFixed(1) + " %", (v) => v],
];
const TOTALS = [
  ["tokens generated", "ridgeline_generated_tokens_total", count],
  ["prompt tokens", "ridgeline_prompt_tokens_total", count],
  ["of them cached", "ridgeline_prefix_cache_hit_tokens_total", count,
    (v, all) => v / (all.ridgeline_prefix_cache_queried_tokens_total || 1)],
  ["preemptions", "ridgeline_preemptions_total", count],
];
const gauges = [];
function gauge(list, [label, name, show, share]) {
  const value = element("dd", "", "–"), fill = element("i", "");
  list.append(element("dt", "", label), value);
  if (share) {
    const bar = element("dd", "bar");
    bar.append(fill);
    list.append(bar);
  }
  gauges.push((all) => {
    if (!(name in all)) return;
    value.textContent = show(all[name]);
    if (share) fill.style.width = Math.min(100, 100 * share(all[name], all)) + "%";
  });
}
for (const row of NOW) gauge($("now"), row);
for (const row of TOTALS) gauge($("totals"), row);

const EVERY_MS = 2000, POINTS = 60;
const rates = [];
let last = null;

function parse(text) {
  const values = {};
  for (const line of text.split("\n")) {
    const match = /^([a-z_:]+)(?:\{[^}]*\})? ([^ ]+)$/.exec(line);
    if (match) values[match[1]] = Number(match[2]);
  }
  return values;
}

function plot() {
  const canvas = $("plot"), context = canvas.getContext("2d"), dots = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight, color = getComputedStyle(document.documentElement);
  const step = 10 ** Math.floor(Math.log10(Math.max(10, ...rates))), top = step * Math.ceil(Math.max(10, ...rates) / step);
  canvas.width = width * dots;
  canvas.height = height * dots;
  context.scale(dots, dots);
  const x = (i) => width - (rates.length - 1 - i) * (width / (POINTS - 1)), y = (rate) => height - 1 - (rate / top) * (height - 18);
  context.font = "11px system-ui, sans-serif";
  context.strokeStyle = color.getPropertyValue("--line");
  context.fillStyle = color.getPropertyValue("--soft");
  context.fillText(count(top), 0, 11);
  context.beginPath();
  for (const level of [0, top / 2, top]) {
    context.moveTo(0, y(level)), context.lineTo(width, y(level));
  }
  context.stroke();
  if (rates.length < 2) return;
  context.beginPath();
  rates.forEach((rate, i) => context.lineTo(x(i), y(rate)));
  context.strokeStyle = color.getPropertyValue("--accent");
  context.lineWidth = 2;
  context.lineJoin = "round";
  context.stroke();
  context.lineTo(width, y(0));
  context.lineTo(x(0), y(0));
  context.fillStyle = color.getPropertyValue("--wash");
  context.fill();
}

function sample(values) {
  for (const show of gauges) show(values);
  const now = performance.now(), made = values.ridgeline_generated_tokens_total ?? 0;
  if (last) {
    const rate = Math.max(0, (made - last.made) / ((now - last.now) / 1000));
    rates.push(rate);
    if (rates.length > POINTS) rates.shift();
    $("rate").textContent = rate >= 100 || rate === 0 ? count(Math.round(rate)) : rate.toFixed(1);
  }
  last = { now, made };
  plot();
}

function say(state) {
  $("state").textContent = $("state").dataset.state = state;
}

async function tick() {
  try {
    sample(parse(await (await fetch("metrics")).text()));
    say((await (await fetch("ready")).json()).status);
    if (!$("model").textContent) {
      const models = await fetch("v1/models");
      if (models.ok) $("model").textContent = (await models.json()).data[0].id;
    }
  } catch {
    say("unreachable");
  }
  setTimeout(tick, document.hidden ? 5 * EVERY_MS : EVERY_MS);
}
tick();
