// Run the page's script over the little of a DOM that it touches: node page_dom.js page.js http://server
"use strict";
const fs = require("fs");
const vm = require("vm");
const [source, base] = process.argv.slice(2);
const values = { temperature: "0.7", max: "40" };
const elements = {};

function element(id) {
  elements[id] ??= {
    id,
    value: values[id] ?? "",
    dataset: {},
    children: [],
    classList: { add() {} },
    append(...nodes) {
      this.children.push(...nodes);
      for (const node of nodes) if (node.id) elements[node.id] = node;
    },
    replaceChildren() { this.children = []; },
    addEventListener(kind, listener) { this["on" + kind] = listener; },
    getContext: () => ({ clearRect() {}, fillText() {}, beginPath() {}, lineTo() {}, stroke() {} }),
  };
  return elements[id];
}
globalThis.document = {
  getElementById: element,
  createElement: () => ({ dataset: {}, classList: { add() {} } }),
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
  const nodes = element("gauges").children;
  const gauges = {};
  for (let i = 0; i < nodes.length; i += 2) gauges[nodes[i].textContent] = nodes[i + 1].textContent;
  const made = Number((gauges["tokens generated"] || "").replace(/,/g, ""));
  if (!(made >= 40) || !element("timing").textContent) return setTimeout(report, 100);
  const turns = element("log").children.map((node) => ({ class: node.className, text: node.textContent }));
  const [timing, model, state] = ["timing", "model", "state"].map((id) => element(id).textContent);
  console.log(JSON.stringify({ turns, timing, model, state, gauges }));
  process.exit(0);
}
report();
