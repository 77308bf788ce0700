// Says to a screen reader what ipywidgets shows to the eye alone: a slider's name, value and help, and each new status.
(() => {
  const describe = () => {
    for (const row of document.querySelectorAll(".course-panel .widget-inline-hbox")) {
      const label = row.querySelector(".widget-label");
      const readout = row.querySelector(".widget-readout");
      if (!label) continue;
      for (const part of row.querySelectorAll(".noUi-handle, input, select, textarea")) {
        part.setAttribute("aria-description", label.title || row.title);
        if (part.matches(".noUi-handle")) {
          part.setAttribute("aria-label", label.textContent);
          if (readout) part.setAttribute("aria-valuetext", readout.textContent);
        }
      }
      if (readout && readout.isContentEditable) {
        readout.setAttribute("role", "textbox");
        readout.setAttribute("aria-label", label.textContent + ", as a number");
      }
    }
    for (const status of document.querySelectorAll(".course-panel .course-status")) status.setAttribute("role", "status");
  };
  let isAsked = false;
  const ask = () => {
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => { isAsked = false; describe(); });
  };
  if (window.courseLabels) window.courseLabels.disconnect();
  window.courseLabels = new MutationObserver(ask);
  window.courseLabels.observe(document.body, { childList: true, subtree: true, characterData: true });
  ask();
})();
