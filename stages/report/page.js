"use strict";
for (const gallery of document.querySelectorAll(".gallery")) {
  const items = [...gallery.querySelectorAll(".item")];
  const count = gallery.querySelector(".count");
  const chosen = { type: "", right: "" };
  const show = () => {
    let shown = 0;
    for (const item of items) {
      const fits = Object.entries(chosen).every(([key, value]) => !value || item.dataset[key] === value);
      item.hidden = !fits;
      shown += fits;
    }
    if (count) count.textContent = `${shown} of ${items.length} shown`;
  };
  for (const button of gallery.querySelectorAll(".filters button")) {
    button.addEventListener("click", () => {
      chosen[button.dataset.filter] = button.dataset.value;
      for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
      show();
    });
  }
  show();
}
