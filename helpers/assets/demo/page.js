// The page around an engine. An engine has `ready()`, and `run(values, show, signal)`, which calls `show(model, text)`
// with the complete continuation after each token. Text is set as textContent, never as HTML.
const $ = (selector) => document.querySelector(selector);
const answers = Object.fromEntries([...document.querySelectorAll(".answer")].map((a) => [a.dataset.model, a]));
let running = null;

function say(text, isError = false) {
  $("#status").textContent = text;
  $("#status").classList.toggle("error", isError);
}

function values() {
  const inputs = [...document.querySelectorAll(".control input")];
  return { prompt: $("#prompt").value, ...Object.fromEntries(inputs.map((i) => [i.name, Number(i.value)])) };
}

function setRunning(controller) {
  running = controller;
  $("#start").disabled = Boolean(controller);
  $("#stop").disabled = !controller;
}

async function start(event) {
  event.preventDefault();
  if ($("#start").disabled) return;
  const asked = values();
  for (const answer of Object.values(answers)) {
    const prompt = document.createElement("b");
    prompt.textContent = asked.prompt;
    answer.querySelector(".text").replaceChildren(prompt, "");
    answer.querySelector(".copy").disabled = false;
  }
  setRunning(new AbortController());
  say("Writing…");
  try {
    await engine.run(asked, (model, text) => {
      answers[model].querySelector(".text").lastChild.textContent = text;
    }, running.signal);
    say(running.signal.aborted ? "Stopped." : "Done.");
  } catch (error) {
    running.signal.aborted ? say("Stopped.") : say(error.message, true);
  } finally {
    setRunning(null);
  }
}

async function copy(button) {
  const text = button.closest(".answer").querySelector(".text").textContent;
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    say("This browser did not let the page copy: select the text and copy it by hand.", true);
  }
}

$("#form").addEventListener("submit", start);
$("#prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start(event);
});
$("#stop").addEventListener("click", () => running?.abort());
for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copy(button));
for (const range of document.querySelectorAll("input[type=range]")) {
  range.addEventListener("input", () => { range.nextElementSibling.textContent = range.value; });
}
engine.ready().then(() => { setRunning(null); say(""); }, (error) => say(error.message, true));
