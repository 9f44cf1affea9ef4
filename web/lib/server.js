// What the page asks the server for (docs/http.md). An answer that is no success becomes an Error with the server's sentence.

export function makeServer(api) {
  const ask = async (path, options = {}) => {
    const answer = await api.fetchApi(`/flux_lora/${path}`, options);
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) throw Object.assign(new Error(body.error ?? `the server answers ${answer.status}`), { status: answer.status });
    return body;
  };
  const json = { "Content-Type": "application/json" };
  const send = (path, body) => ask(path, { method: "POST", headers: json, body: JSON.stringify(body) });
  const run = (id) => `runs/${encodeURIComponent(id)}`;
  return {
    runs: async () => (await ask("runs", { cache: "no-store" })).runs,
    run: (id) => ask(run(id), { cache: "no-store" }),
    events: (id, after) => ask(`${run(id)}/events?after=${after}`, { cache: "no-store" }),
    fileUrl: (id, path) => api.apiURL(`/flux_lora/${run(id)}/files/${path.split("/").map(encodeURIComponent).join("/")}`),
    workflow: (id) => ask(`${run(id)}/workflow`),
    ask: (id, command, prompt) => send(`${run(id)}/ask`, prompt ? { command, prompt } : { command }),
    offer: (id, name, checkpoint) => send(`${run(id)}/offer`, { name, checkpoint }),
    remove: (id) => ask(run(id), { method: "DELETE", headers: json }),
    standby: () => send("standby", {}),
    upload: (name, form) => ask(`datasets?name=${encodeURIComponent(name)}`, { method: "POST", body: form }),
  };
}
