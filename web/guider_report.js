// What AdaptiveGuider did in the last sampling, as text on the node (nodes/guider.py sends it after each run).
//
// The text belongs to the page and not to the workflow: its widget is not saved, and it comes with the first report.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const MESSAGE = "flux_lora.guidance";
const WIDGET = "guidance_report";
const HEIGHT = 72; // in pixels; more lines scroll

app.registerExtension({
  name: "flux_lora.guider_report",
  setup() {
    api.addEventListener(MESSAGE, ({ detail }) => {
      const node = findNode(String(detail.node_id));
      if (node?.type === "AdaptiveGuider") show(node, detail.text);
    });
  },
});

// Nodes inside subgraphs have ids such as "12:3": node 3 in the graph of node 12.
function findNode(id) {
  let node = null;
  let graph = app.graph;
  for (const part of id.split(":")) {
    node = graph?.getNodeById(part) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

function show(node, text) {
  let widget = node.widgets?.find((one) => one.name === WIDGET);
  if (!widget) {
    const element = document.createElement("pre");
    element.style.cssText = "margin:0;padding:4px 6px;overflow:auto;font:11px/1.35 monospace;white-space:pre-wrap;opacity:.85";
    widget = node.addDOMWidget(WIDGET, WIDGET, element, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => HEIGHT,
      getValue: () => element.textContent,
      setValue: () => {},
    });
    widget.serialize = false;
    const needed = node.computeSize();
    node.setSize([Math.max(node.size[0], needed[0], 320), Math.max(node.size[1], needed[1])]);
  }
  widget.element.textContent = text;
  node.setDirtyCanvas?.(true);
}
