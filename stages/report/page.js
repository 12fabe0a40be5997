"use strict";
for (const gallery of document.querySelectorAll(".gallery")) {
  const items = [...gallery.querySelectorAll(".item")];
  const count = gallery.querySelector(".count");
  const field = Object.fromEntries([...gallery.querySelectorAll("[data-field]")].map((f) => [f.dataset.field, f]));
  const chosen = { type: "", right: "" };
  const number = (text) => (text === "" || text === undefined ? null : Number(text));
  const edits = (item) => [...item.querySelectorAll(".edit")];

  const fits = (edit) => {
    const score = number(edit.dataset.score), low = number(field.low?.value), high = number(field.high?.value);
    if (field.method?.value && edit.dataset.method !== field.method.value) return false;
    if ((low !== null || high !== null) && score === null) return false;  // unscored lies in no range
    if ((low !== null && score < low) || (high !== null && score > high)) return false;
    return !field.apart?.checked || edit.dataset.apart === "yes";
  };
  const gap = (item) => Math.max(-1, ...edits(item).filter((e) => !e.hidden && e.dataset.gap).map((e) => e.dataset.gap));

  const show = () => {
    let shown = 0, numEdits = 0;
    for (const item of items) {
      const own = edits(item);
      for (const edit of own) edit.hidden = !fits(edit);
      const kept = own.filter((edit) => !edit.hidden).length;
      item.hidden = !Object.entries(chosen).every(([key, value]) => !value || item.dataset[key] === value)
        || (own.length > 0 && !kept);
      shown += !item.hidden;
      numEdits += item.hidden ? 0 : kept;
    }
    if (field.order) {
      const order = field.order.value ? [...items].sort((a, b) => gap(b) - gap(a)) : items;
      gallery.querySelector(".items").append(...order);
    }
    const more = gallery.querySelector(".edit") ? `, ${numEdits} edits` : "";
    if (count) count.textContent = `${shown} of ${items.length} shown${more}`;
  };
  for (const button of gallery.querySelectorAll(".filters button")) {
    button.addEventListener("click", () => {
      chosen[button.dataset.filter] = button.dataset.value;
      for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
      show();
    });
  }
  for (const input of Object.values(field)) input.addEventListener("input", show);

  const dialog = gallery.querySelector("dialog");
  if (dialog) {
    gallery.addEventListener("click", (event) => {
      const edit = event.target.closest(".open")?.closest(".edit");
      if (edit) {  // nothing is parsed here: what was on the page as text stays text
        const item = edit.closest(".item");
        const large = [item.querySelector(".source"), edit].map((figure) => {
          const copy = document.createElement("figure");
          copy.append(figure.querySelector("img, .missing").cloneNode(true), figure.querySelector("figcaption").cloneNode(true));
          return copy;
        });
        dialog.querySelector("h3").textContent = item.querySelector("h3").firstChild.textContent;
        dialog.querySelector(".large").replaceChildren(...large);
        dialog.querySelector(".about").replaceChildren(edit.querySelector("template").content.cloneNode(true));
        dialog.showModal();
        dialog.scrollTop = 0;
      } else if (event.target === dialog) dialog.close();  // beside it
    });
  }
  show();
}
