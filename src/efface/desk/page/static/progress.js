// Shows the progress of work without loading the page again; when it ends, the page is loaded once.
"use strict";
const shown = document.getElementById("progress");
let wait = 1500;
async function look() {
  try {
    const answer = await fetch("/work", { credentials: "same-origin" });
    if (answer.status === 401) { location.reload(); return; }
    if (answer.ok) {
      const made = document.createElement("template");
      made.innerHTML = await answer.text();
      const box = made.content.querySelector("[data-state]");
      if (!box || box.dataset.state !== "running") { location.reload(); return; }
      if (made.content.textContent !== shown.textContent) shown.replaceChildren(made.content);
      wait = 1500;
    }
  } catch {
    wait = Math.min(2 * wait, 30000);  // the server was ended, or is busy
  }
  setTimeout(look, wait);
}
setTimeout(look, wait);
