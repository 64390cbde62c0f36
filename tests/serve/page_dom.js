// Run the page's script over the little of a DOM that it touches: node page_dom.js page.js http://server
"use strict";
const fs = require("fs");
const vm = require("vm");
const [source, base] = process.argv.slice(2);
const values = { temperature: "0.7", max: "40" };
const elements = {};

function node(id) {
  return {
    id,
    value: values[id] ?? "",
    textContent: "",
    dataset: {},
    style: {},
    children: [],
    classList: { add() {} },
    append(...nodes) { this.children.push(...nodes); },
    replaceChildren() { this.children = []; },
    addEventListener(kind, listener) { this["on" + kind] = listener; },
    getContext: () => new Proxy({}, { get: () => () => {}, set: () => true }),
  };
}
const element = (id) => (elements[id] ??= node(id));
globalThis.window = globalThis;
globalThis.document = {
  getElementById: element,
  createElement: () => node(""),
  querySelector: () => null,
  documentElement: {},
  hidden: false,
};
globalThis.getComputedStyle = () => ({ getPropertyValue: () => "#fff" });
const reallyFetch = fetch;
globalThis.fetch = (path, options) => reallyFetch(`${base}/${path}`, options);

vm.runInThisContext(fs.readFileSync(source, "utf8"));
element("text").value = "hello there";
element("ask").onsubmit({ preventDefault() {} });

function report() {
  const gauges = {};
  for (const list of ["now", "totals"]) {
    const parts = element(list).children.filter((part) => part.className !== "bar");
    for (let i = 0; i < parts.length; i += 2) gauges[parts[i].textContent] = parts[i + 1].textContent;
  }
  const made = Number((gauges["tokens generated"] || "").replace(/,/g, ""));
  const rows = element("log").children.map((row) => row.children);
  if (!(made >= 40) || !rows[1][1].textContent || !element("rate").textContent) return setTimeout(report, 100);
  const turns = rows.map(([box]) => ({ class: box.className, text: box.textContent }));
  const [model, state] = ["model", "state"].map((id) => element(id).textContent);
  console.log(JSON.stringify({ turns, timing: rows[1][1].textContent, model, state, gauges }));
  process.exit(0);
}
report();
