// A trainer that waits with its libraries loaded, so that Run begins at once: asked for where a TrainLoRA is before somebody, and
// when a run has ended. Not while the server is at work, and quietly: without it a run begins as well, only later.

/** `wish()` asks for one as soon as the queue is empty. */
export function makeStandby(api, server) {
  let isWished = false;
  let isBusy = false;
  const ask = () => {
    if (!isWished || isBusy) return;
    isWished = false;
    server.standby().catch(() => {});
  };
  api.addEventListener("status", ({ detail }) => {
    isBusy = detail?.exec_info?.queue_remaining > 0;
    ask();
  });
  return {
    wish: () => {
      isWished = true;
      ask();
    },
  };
}
