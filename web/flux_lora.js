// The one entry: registers the extension with ComfyUI. All else is in lib/, whose files do nothing until they are called.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { el } from "./lib/dom.js";
import { makeFeeds } from "./lib/feeds.js";
import { makeHistory } from "./lib/history.js";
import { addMonitor, isTrainNode, showRun } from "./lib/monitor.js";
import { notify } from "./lib/notice.js";
import { addPromptEditor } from "./lib/prompt_editor.js";
import { makeServer } from "./lib/server.js";
import { makeStandby } from "./lib/standby.js";
import { addUpload } from "./lib/upload.js";

const COPY_SECONDS = 3;
const RETURNED = "flux_lora_run"; // in the output of TrainLoRA
const TAB = "flux-lora-runs";
const NODES = { DatasetBucket: addUpload, ValidationConfig: addPromptEditor };

const server = makeServer(api);
const feeds = makeFeeds(server);
const standby = makeStandby(api, server);
const context = { app, server, feeds };

app.registerExtension({
  name: "flux-lora-studio",
  nodeCreated(node) {
    if (isTrainNode(node)) {
      addMonitor(node, context);
      standby.wish();
    }
    NODES[node.comfyClass]?.(node, context);
  },
  async setup() {
    document.head.append(el("link", { rel: "stylesheet", href: new URL("flux_lora.css", import.meta.url).href }));
    const history = makeHistory(context);
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: "pi pi-chart-line",
      title: "LoRA runs",
      tooltip: "LoRA runs",
      type: "custom",
      render: (container) => container.replaceChildren(history.element),
    });
    api.addEventListener("executed", ({ detail: { node, display_node, output } }) => {
      const [run_id] = output?.[RETURNED] ?? []; // also where ComfyUI had kept the node's result and did not run it
      if (run_id) showRun(app, { node_id: display_node ?? node, run_id });
    });
    const begun = new Set(); // runs that this page has seen at work
    api.addEventListener("flux_lora.run", ({ detail }) => {
      showRun(app, detail);
      feeds.revive(detail.run_id);
      history.changed();
      if (detail.state === "running") begun.add(detail.run_id);
      else if (begun.delete(detail.run_id)) {
        standby.wish();
        if (detail.state === "finished") announce(detail.run_id, history);
      }
    });
  },
});

/** The node that trained has copied its LoRA once it is executed; other tabs do not hear of that, and wait a little. */
const copied = () =>
  new Promise((resolve) => {
    api.addEventListener("executed", resolve, { once: true });
    setTimeout(resolve, COPY_SECONDS * 1000);
  });

/** A LoRA is new: it is in every list of LoRAs, and a word says so and leads to its run. */
async function announce(id, history) {
  await copied();
  await app.refreshComboInNodes();
  const { name, thumbnail } = await server.run(id);
  const show = async () => {
    if (app.extensionManager.sidebarTab?.activeSidebarTabId !== TAB) await app.extensionManager.sidebarTab?.toggleSidebarTab(TAB);
    await history.open(id);
  };
  const picture = thumbnail && server.fileUrl(id, thumbnail);
  notify({ title: `${name} is trained`, text: `${id}.safetensors is in the list of LoRAs now.`, picture, action: "Show the run", onAction: show });
}
