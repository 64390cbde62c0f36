"use strict";
const $ = (id) => document.getElementById(id);
const turns = [];
let running = null;

function bubble(role, text) {
  const box = document.createElement("div");
  box.className = "turn " + role;
  box.textContent = text;
  $("log").append(box);
  $("log").scrollTop = $("log").scrollHeight;
  return box;
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
  const box = bubble("assistant", "");
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
      box.textContent = answer;
      $("log").scrollTop = $("log").scrollHeight;
    }
    const seconds = (performance.now() - first) / 1000;
    const rate = tokens > 1 && seconds > 0 ? ((tokens - 1) / seconds).toFixed(1) + " tokens/s" : "";
    $("timing").textContent = first ? `first token ${Math.round(first - started)} ms  ${rate}` : "";
  } catch (error) {
    if (error.name !== "AbortError") {
      box.classList.add("error");
      box.textContent = answer + (answer ? "\n" : "") + error.message;
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
  $("timing").textContent = "";
});

const GAUGES = [
  ["running", "ridgeline_requests_running", (v) => v],
  ["waiting", "ridgeline_requests_waiting", (v) => v],
  ["KV cache held", "ridgeline_kv_usage_ratio", (v) => (100 * v).toFixed(1) + " %"],
  ["tokens generated", "ridgeline_generated_tokens_total", (v) => v.toLocaleString()],
  ["prompt tokens", "ridgeline_prompt_tokens_total", (v) => v.toLocaleString()],
  ["prefix hits", "ridgeline_prefix_cache_hit_tokens_total", (v) => v.toLocaleString()],
  ["preemptions", "ridgeline_preemptions_total", (v) => v],
  ["memory", "process_resident_memory_bytes", (v) => (v / 2 ** 20).toFixed(0) + " MiB"],
];
for (const [label, name] of GAUGES) {
  const dt = document.createElement("dt"), dd = document.createElement("dd");
  dt.textContent = label;
  dd.id = name;
  dd.textContent = "–";
  $("gauges").append(dt, dd);
}
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
  const canvas = $("plot"), context = canvas.getContext("2d"), top = Math.max(10, ...rates);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--soft");
  context.lineWidth = 3;
  context.font = "20px system-ui";
  context.fillText(top.toFixed(0), 8, 24);
  context.beginPath();
  rates.forEach((rate, i) => {
    const x = canvas.width - (rates.length - 1 - i) * (canvas.width / 60);
    context.lineTo(x, canvas.height - 6 - (rate / top) * (canvas.height - 36));
  });
  context.stroke();
}

async function tick() {
  try {
    const values = parse(await (await fetch("metrics")).text());
    for (const [, name, show] of GAUGES) if (name in values) $(name).textContent = show(values[name]);
    const now = performance.now(), made = values.ridgeline_generated_tokens_total ?? 0;
    if (last) {
      rates.push(Math.max(0, (made - last.made) / ((now - last.now) / 1000)));
      if (rates.length > 60) rates.shift();
      plot();
    }
    last = { now, made };
    $("state").textContent = (await (await fetch("ready")).json()).status;
    if ($("model").dataset.known !== "1") {
      const models = await fetch("v1/models");
      if (models.ok) {
        $("model").textContent = (await models.json()).data[0].id;
        $("model").dataset.known = "1";
      }
    }
  } catch {
    $("state").textContent = "unreachable";
  }
  setTimeout(tick, document.hidden ? 10000 : 2000);
}
tick();
