// Pictures, a folder or a zip dropped onto DatasetBucket become a new folder of ComfyUI's input folder, chosen in the node.

import { el } from "./dom.js";
import { plural } from "./format.js";

const ACCEPTED = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jxl", ".txt", ".caption", ".zip"];
const MOST_NAMED = 3;

/** Let a new DatasetBucket take files, by drop or by its button; `context` is {app, server}. */
export function addUpload(node, context) {
  const take = (files, name) => upload(node, files, name, context);
  node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some(({ kind }) => kind === "file");
  node.onDragDrop = async (event) => {
    const { files, name } = await dropped(event.dataTransfer);
    if (!files.length) return false;
    await take(files, name);
    return true;
  };
  const opener = node.addWidget("button", "Upload pictures or a zip", null, () => {
    const input = el("input", { type: "file", multiple: true, accept: ACCEPTED.join(",") });
    input.addEventListener("change", () => take([...input.files], nameFor([...input.files])));
    input.click();
  });
  opener.serialize = false;
  opener.tooltip = "Or drop pictures, a folder or a zip onto this node.";
}

async function upload(node, files, name, { app, server }) {
  const tell = (severity, summary, detail) => app.extensionManager.toast.add({ severity, summary, detail, life: 8000 });
  const form = new FormData();
  for (const file of files) form.append("files", file, file.name);
  tell("info", "Dataset", `Uploading ${plural(files.length, "file")}…`);
  try {
    const { folder, pictures, left_out } = await server.upload(name, form);
    choose(node, folder);
    const named = left_out.slice(0, MOST_NAMED).map(({ file, reason }) => `${file}: ${reason}`);
    const rest = left_out.length > MOST_NAMED ? ` and ${left_out.length - MOST_NAMED} more` : "";
    tell("success", `${plural(pictures, "picture")} in ${folder}`, left_out.length ? `Left out: ${named.join("; ")}${rest}` : "");
  } catch (error) {
    tell("error", "The upload failed", error.message);
  }
}

/** The folder becomes the node's, and one of those that its list offers. */
function choose(node, folder) {
  const widget = node.widgets.find(({ name }) => name === "folder");
  const values = widget.options.values;
  if (Array.isArray(values) && !values.includes(folder)) widget.options.values = [...values, folder];
  widget.value = folder;
  widget.callback?.(folder);
  const path = node.widgets.find((other) => other.name === "path");
  if (path?.value) path.value = ""; // it would be taken instead
  node.setDirtyCanvas?.(true, true);
}

/** The files of a drop, those in folders too, and a name for them. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return { files: [...transfer.files], name: nameFor([...transfer.files]) };
  const files = (await Promise.all(entries.map(filesOf))).flat();
  const folder = entries.find((entry) => entry.isDirectory);
  return { files, name: folder ? folder.name : nameFor(files) };
}

async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return isAccepted(file) ? [file] : [];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) return found;
    found.push(...(await Promise.all(some.map(filesOf))).flat());
  }
}

const isAccepted = ({ name }) => ACCEPTED.some((suffix) => name.toLowerCase().endsWith(suffix));

/** A zip's own name, else one that says what it is. */
function nameFor(files) {
  const zip = files.find(({ name }) => name.toLowerCase().endsWith(".zip"));
  return zip ? zip.name.slice(0, -4) : "pictures";
}
