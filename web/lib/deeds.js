// What can be done with a run of the history: open its workflow, resume it, copy its LoRA, delete it.

import { isOf, isTrainNode, remember } from "./monitor.js";

/** `context` is {app, server, feeds}; each deed tells the user what came of it. */
export function makeDeeds({ app, server, feeds }) {
  const tell = (severity, summary, detail = "") => app.extensionManager.toast.add({ severity, summary, detail, life: 6000 });
  const tried = (deed) => async (...values) => {
    try {
      return await deed(...values);
    } catch (error) {
      tell("error", "FLUX LoRA", error.message);
      return false;
    }
  };

  const open = async ({ id }) => {
    const { workflow, prompt } = await server.workflow(id);
    if (workflow) await app.loadGraphData(workflow, true, true, id);
    else if (prompt) await app.loadApiJson(prompt, id);
    else throw new Error("This run keeps no workflow: it was not queued from the canvas, or metadata is switched off.");
    for (const node of app.graph.nodes.filter((other) => isTrainNode(other) && isOf(other, id))) remember(node, id);
    return true;
  };
  const resume = async (run) => {
    await open(run);
    await app.queuePrompt(0);
    return true;
  };
  const copy = async ({ id, name }, checkpoint) => {
    const asked = { title: "Copy the LoRA", message: "Its name in ComfyUI's LoRA folder; folder/name puts it into a folder.", defaultValue: name };
    const wanted = await app.extensionManager.dialog.prompt(asked);
    if (!wanted?.trim()) return false;
    const { lora } = await server.offer(id, wanted.trim(), checkpoint);
    await app.refreshComboInNodes();
    tell("success", "LoRA copied", `${lora} is in the list of LoRAs now.`);
    return true;
  };
  const remove = async ({ id }) => {
    const message = `Delete the run ${id} with its checkpoints, pictures and LoRA? Copies in the LoRA folder stay.`;
    if (!(await app.extensionManager.dialog.confirm({ title: "Delete the run", message, type: "delete" }))) return false;
    await server.remove(id);
    feeds.forget(id);
    return true;
  };
  return { open: tried(open), resume: tried(resume), copy: tried(copy), remove: tried(remove) };
}
