// A panel that keeps itself up to date: it watches its run's feed while it can be seen.

import { makePanel } from "./panel.js";
import { watchSight } from "./seen.js";
import { outcomeOf } from "./words.js";

const WITH_MESSAGE = ["failed", "interrupted"];

/** `onShown(run)` is called after each change; `end()` lets go of everything. */
export function makeView({ server, feeds, id, resume = null, onShown = () => {} }) {
  const panel = makePanel({ server, id, resume });
  const sight = watchSight(panel.element, () => feeds.wake(id));
  let told = { outcome: "", message: "" };

  const explain = async (run, outcome) => {
    told = { outcome, message: "" };
    if (!WITH_MESSAGE.includes(outcome)) return;
    try {
      told.message = (await server.run(id)).message ?? "";
    } catch {
      return; // the panel has said already that the server does not answer
    }
    if (told.outcome === outcome) panel.show(run, told.message);
  };
  const unwatch = feeds.watch(id, sight.isSeen, (run) => {
    const outcome = outcomeOf(run);
    if (outcome !== told.outcome) explain(run, outcome);
    panel.show(run, told.message);
    onShown(run);
  });
  const end = () => {
    unwatch();
    sight.end();
  };
  return { element: panel.element, leastHeight: panel.leastHeight, end };
}
