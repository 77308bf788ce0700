// What ipywidgets lacks: help on every row, and for screen readers a slider's name, value and help and each new status.
// `helpers.widgets.panel` prepends `help` (a control's name -> its help).
(() => {
  // JupyterLab keeps several notebooks in one page, and the newest script handles the panels of all of them.
  const all = window.courseHelp = { ...window.courseHelp, ...help };
  const describe = () => {
    for (const row of document.querySelectorAll(".course-panel .widget-inline-hbox")) {
      const words = (row.querySelector(".widget-label-basic") ?? row.querySelector(".widget-label"))?.textContent;
      const readout = row.querySelector(".widget-readout");
      if (!(words in all)) continue;
      row.title = all[words];
      for (const part of row.querySelectorAll(".noUi-handle, input, select, textarea")) {
        part.setAttribute("aria-description", all[words]);
        if (part.matches(".noUi-handle")) {
          part.setAttribute("aria-label", words);
          if (readout) part.setAttribute("aria-valuetext", readout.textContent);
        }
      }
      if (readout && row.matches(".course-steps")) {
        readout.contentEditable = "false";  // ipywidgets would show what is typed there, and keep the old value
      } else if (readout) {
        readout.setAttribute("role", "textbox");
        readout.setAttribute("aria-label", words + ", as a number");
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
