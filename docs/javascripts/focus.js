/* Regions that scroll sideways can be reached by keyboard. */
function focusable() {
  for (const one of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) {
    if (one.scrollWidth > one.clientWidth) one.setAttribute("tabindex", "0");
  }
}
window.addEventListener("load", () => setTimeout(focusable, 200));
window.addEventListener("resize", focusable);
