// The models run in the program that serves this page; it answers with server-sent events.
const engine = {
  ready: async () => {},
  run: async (values, show, signal) => {
    const token = new URLSearchParams(location.search).get("token");
    const headers = { "Content-Type": "application/json", "X-Token": token };
    let response;
    try {
      response = await fetch("/continue", { method: "POST", headers, body: JSON.stringify(values), signal });
    } catch (error) {
      throw signal.aborted ? error : new Error("The program behind this page has ended: start it again.");
    }
    if (!response.ok) throw new Error(await response.text());
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const { done, value } = await reader.read();
      const events = (rest + (value ?? "")).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const { model, text, error } = JSON.parse(event.slice("data: ".length));
        if (error) throw new Error(error);
        show(model, text);
      }
      if (done) return;
    }
  },
};
