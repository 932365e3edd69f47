/* Regions that scroll sideways can be reached by keyboard, and the search has a name for a screen reader. */
function focusable() {
  for (const one of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) {
    if (one.scrollWidth > one.clientWidth) one.setAttribute("tabindex", "0");
  }
}
document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search");
window.addEventListener("load", () => setTimeout(focusable, 200));
window.addEventListener("resize", focusable);
