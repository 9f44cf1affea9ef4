// The prompt library's JSON as rows, and rows as JSON; what is wrong with a row. The rules are those of the trainer
// (trainer_core/specs/prompts.py), which has the last word.

const NAME = /^[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}$/;
const FIELDS = ["prompt", "negative_prompt", "seed"];

export const emptyRow = () => ({ name: "", prompt: "", seed: "", negative: "" });

/** {rows, problem}; where there is a problem the text cannot be shown as rows without losing something. */
export function readLibrary(text) {
  if (!text.trim()) return { rows: [], problem: "" };
  let entries;
  try {
    entries = JSON.parse(text);
  } catch (error) {
    return { rows: [], problem: `The text is no JSON: ${error.message}` };
  }
  if (entries === null || typeof entries !== "object" || Array.isArray(entries)) return { rows: [], problem: "The text is no JSON object." };
  const rows = Object.entries(entries).map(([name, value]) => readRow(name, value));
  const odd = rows.find((row) => row.problem);
  return odd ? { rows: [], problem: odd.problem } : { rows, problem: "" };
}

function readRow(name, value) {
  if (typeof value === "string") return { ...emptyRow(), name, prompt: value };
  const known = value !== null && typeof value === "object" && Object.keys(value).every((field) => FIELDS.includes(field));
  if (!known || typeof value.prompt !== "string") return { problem: `“${name}” is neither a prompt nor {"prompt": …, "seed": …}.` };
  const seed = value.seed ?? "";
  if (seed !== "" && !Number.isSafeInteger(seed)) return { problem: `The seed of “${name}” is too large for this page; change it in the text.` };
  return { name, prompt: value.prompt, seed: String(seed), negative: value.negative_prompt ?? "" };
}

/** The rows as JSON, one a line; rows without anything are left out. */
export function writeLibrary(rows) {
  const lines = rows.filter(isFilled).map(({ name, prompt, seed, negative }) => {
    const more = { ...(seed.trim() ? { seed: Number(seed) } : {}), ...(negative.trim() ? { negative_prompt: negative } : {}) };
    const value = Object.keys(more).length ? { prompt, ...more } : prompt;
    return `  ${JSON.stringify(name.trim())}: ${JSON.stringify(value)}`;
  });
  return lines.length ? `{\n${lines.join(",\n")}\n}` : "";
}

/** What is wrong with a row among others, as a sentence, or an empty text. */
export function problemOf(row, rows) {
  if (!isFilled(row)) return "";
  const name = row.name.trim();
  if (!NAME.test(name) || name.endsWith(".")) return "The nickname names files: letters, digits, blank, dot, dash, underscore; at most 80.";
  if (rows.some((other) => other !== row && other.name.trim().toLowerCase() === name.toLowerCase())) return "This nickname is taken.";
  if (!row.prompt.trim()) return "The prompt is empty.";
  if (row.seed.trim() && !(/^\d+$/.test(row.seed.trim()) && Number.isSafeInteger(Number(row.seed)))) return "The seed is a whole number from 0 on.";
  return "";
}

const isFilled = ({ name, prompt, seed, negative }) => [name, prompt, seed, negative].some((text) => text.trim());
