// The model runs in this browser: llama.cpp's WebAssembly build (wllama), from the data in this page.
const bytes = (id) => Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
const unzipped = (id) => new Response(new Blob([bytes(id)]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
const facts = JSON.parse(document.getElementById("facts").textContent);
let llama, WllamaAbortError;

// A page opened from a file may not start module workers. wllama asks for one, but works with a classic worker.
const NativeWorker = Worker;
globalThis.Worker = class extends NativeWorker {
  constructor(address) { super(address); }
};

const engine = {
  ready: async () => {
    const source = new Blob([await unzipped("library")], { type: "text/javascript" });
    const wllama = await import(URL.createObjectURL(source));
    WllamaAbortError = wllama.WllamaAbortError;
    // A data: URL, because a worker may not fetch blobs of a page that was opened from a file.
    const address = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      unzipped("wasm").then((blob) => reader.readAsDataURL(new Blob([blob], { type: "application/wasm" })));
    });
    llama = new wllama.Wllama(
      { "single-thread/wllama.wasm": address }, { suppressNativeLog: true, logger: wllama.LoggerWithoutDebug });
    await llama.loadModel([new Blob([bytes("model")])], { n_ctx: facts.n_positions, n_threads: 1 });
  },
  run: async (values, show, signal) => {
    const [before, after] = facts.frame;  // of a question to a chat model
    const isQuestion = values.prompt && after && !values.prompt.trim().endsWith(after);
    const prompt = (isQuestion ? before + values.prompt.trim() + after : values.prompt) || "<|endoftext|>";
    const used = (await llama.tokenize(prompt, true)).length;
    if (used + values.max_new_tokens > facts.n_positions) {
      throw new Error(`The prompt has ${used} tokens and max_new_tokens is ${values.max_new_tokens}: together at most ` +
        `${facts.n_positions}, the model's positions.`);
    }
    try {
      await llama.createCompletion(prompt, {
        nPredict: values.max_new_tokens,
        useCache: false,
        abortSignal: signal,
        sampling: {
          temp: values.temperature, top_k: values.top_k, top_p: values.top_p, min_p: 0,
          penalty_repeat: values.repetition_penalty, penalty_last_n: facts.n_positions,
        },
        onNewToken: (token, piece, text) => show(facts.model, text),
      });
    } catch (error) {
      if (!(error instanceof WllamaAbortError)) throw error;
    }
  },
};
