/* Regions that scroll sideways can be reached by keyboard, and search and code have names for a screen reader. */
function focusable() {
  for (const one of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) {
    if (one.scrollWidth > one.clientWidth) one.setAttribute("tabindex", "0");
  }
  document.querySelectorAll(".md-code__nav").forEach((one, number) => one.setAttribute("aria-label", `Code ${number + 1}`));
}
document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search");
window.addEventListener("load", () => setTimeout(focusable, 200));
window.addEventListener("resize", focusable);
