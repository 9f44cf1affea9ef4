// The live monitor in TrainLoRA's node. Which run it shows is kept in the node's properties, so it comes back with the workflow.

import { el, put } from "./dom.js";
import { makeView } from "./view.js";

const PROPERTY = "flux_lora_run";
const MARGIN = 24; // px that the canvas keeps free around a widget's element
const EMPTY_HEIGHT = 40;
const LEAST_WIDTH = 160;
const EMPTY = "Press Run: the curve, the pictures and the buttons appear here.";

const monitors = new WeakMap(); // node -> what shows a run on it

export const isTrainNode = (node) => node?.comfyClass === "TrainLoRA";

/** Give a new TrainLoRA its monitor; `context` is {app, server, feeds}. */
export function addMonitor(node, context) {
  const root = el("div", { class: "fls fls-node" }, empty());
  let view = null;
  let height = EMPTY_HEIGHT;
  const leastHeight = () => {
    if (!view) height = EMPTY_HEIGHT;
    else if (root.offsetWidth >= LEAST_WIDTH) height = view.leastHeight(); // narrower it is not laid out yet
    return height + MARGIN;
  };
  const options = { serialize: false, hideOnZoom: false, getMinHeight: leastHeight };
  const widget = node.addDOMWidget("flux_lora_monitor", "flux_lora_monitor", root, options);
  widget.serialize = false;
  node.onDrawBackground = () => {}; // the pictures are in the monitor; the canvas need not draw them below it again,
  node.hideOutputImages = true; // nor Nodes 2.0

  const show = (id) => {
    view?.end();
    view = id && makeView({ ...context, id, resume: () => context.app.queuePrompt(0), onShown: () => makeRoom(node) });
    put(root, view ? view.element : empty());
  };
  const configured = node.onConfigure;
  node.onConfigure = function (...values) {
    configured?.apply(this, values);
    show(this.properties?.[PROPERTY]);
  };
  const removed = node.onRemoved;
  node.onRemoved = function (...values) {
    view?.end();
    view = null;
    removed?.apply(this, values);
  };
  monitors.set(node, { show });
}

/** A run was taken up, or returned, by the node with this id: show it there, if it is that node's. */
export function showRun(app, { node_id, run_id }) {
  const node = findNode(app.graph, String(node_id).split(":"));
  if (!isTrainNode(node) || !isOf(node, run_id)) return;
  if (node.properties[PROPERTY] === run_id) return;
  remember(node, run_id);
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.(); // or a reload would not know of it
}

/** Show this run on the node from now on. */
export function remember(node, runId) {
  node.properties[PROPERTY] = runId;
  monitors.get(node)?.show(runId);
}

/** All tabs are told of all runs, and node 7 of another workflow is another node: the run's id begins with the node's name. */
export function isOf(node, runId) {
  const input = node.inputs?.find(({ name }) => name === "name");
  const name = node.widgets?.find((widget) => widget.name === "name")?.value;
  return (input?.link ?? null) !== null || runId.startsWith(`${name}-`);
}

/** The node of an id such as "7", or "12:7" within a subgraph. */
function findNode(graph, [id, ...inside]) {
  const node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id));
  return inside.length ? findNode(node?.subgraph, inside) : node;
}

/** The node grows where the panel needs it; it never shrinks by itself. */
function makeRoom(node) {
  const [width, height] = node.size;
  const least = node.computeSize()[1];
  if (least > height) node.setSize([width, least]);
  node.setDirtyCanvas?.(true, true);
}

const empty = () => el("p", { class: "fls-empty" }, EMPTY);
