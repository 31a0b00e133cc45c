"use strict";
(() => {
  const all = (root, selector) => [...root.querySelectorAll(selector)];

  /* Step through epochs: of each column the latest tile not after the chosen epoch, beside its first if wanted. */
  function stepping(gallery) {
    const epochs = JSON.parse(gallery.dataset.epochs);
    const slider = gallery.querySelector(".step");
    const beside = gallery.querySelector(".beside");
    const columns = all(gallery, ".column").map((column) => all(column, ".slot").map((slot) => all(slot, "[data-epoch]")));
    const epochOf = (parts) => Number(parts[0].dataset.epoch);
    function show() {
      const epoch = epochs[Number(slider.value)];
      gallery.querySelector("output").textContent = epoch;
      slider.setAttribute("aria-valuetext", `epoch ${epoch}`);
      for (const slots of columns) {
        const past = slots.filter((parts) => epochOf(parts) <= epoch);
        const now = past.length ? past[past.length - 1] : slots[0];
        const first = beside !== null && beside.checked ? slots[0] : now;
        for (const parts of slots) for (const part of parts) part.hidden = parts !== now && parts !== first;
      }
    }
    slider.addEventListener("input", show);
    if (beside !== null) beside.addEventListener("change", show);
    gallery.querySelector(".controls").hidden = false;
    show();
  }

  /* A video is a strip of frames behind a window of one frame's size. */
  function playing(gallery) {
    const films = all(gallery, ".film .window").map((view) => {
      const frames = Number(view.dataset.frames);
      const strip = view.querySelector("img");
      view.style.aspectRatio = `${view.dataset.width} / ${view.dataset.height}`;
      strip.style.width = `${frames * 100}%`;
      return { strip, frames };
    });
    const button = gallery.querySelector(".play");
    const slider = gallery.querySelector(".frame");
    if (button === null) return;
    const most = Math.max(...films.map((film) => film.frames));
    slider.max = most - 1;
    function show() {
      for (const { strip, frames } of films) {
        strip.style.transform = `translateX(${(-100 / frames) * (Number(slider.value) % frames)}%)`;
      }
    }
    let timer = 0;
    button.addEventListener("click", () => {
      if (timer) {
        clearInterval(timer);
        timer = 0;
      } else {
        timer = setInterval(() => {
          slider.value = (Number(slider.value) + 1) % most;
          show();
        }, 125);
      }
      button.textContent = timer ? "Pause" : "Play";
    });
    slider.addEventListener("input", show);
  }

  /* Say the values at the epoch nearest to the pointer. */
  function telling(figure) {
    const svg = figure.querySelector("svg");
    const curves = all(svg, ".curve").map((group) => ({ label: group.dataset.label, points: JSON.parse(group.dataset.points) }));
    const told = document.createElement("div");
    told.className = "told";
    told.hidden = true;
    figure.append(told);
    const rule = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of [["class", "rule"], ["y1", 10], ["y2", 192], ["visibility", "hidden"]]) rule.setAttribute(name, value);
    svg.append(rule);
    const short = (value) => (value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4))));
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * 360;
      const nearest = (points) => points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
      const found = curves.filter((curve) => curve.points.length).map((curve) => [curve.label, nearest(curve.points)]);
      if (!found.length) return;
      const place = nearest(found.map(([, point]) => point));
      const lines = found.filter(([, point]) => point[2] === place[2]).map(([label, point]) => `${label}  ${short(point[3])}`);
      told.textContent = [`epoch ${short(place[2])}`, ...lines].join("\n");
      told.hidden = false;
      rule.setAttribute("x1", place[0]);
      rule.setAttribute("x2", place[0]);
      rule.setAttribute("visibility", "visible");
    });
    svg.addEventListener("pointerleave", () => {
      told.hidden = true;
      rule.setAttribute("visibility", "hidden");
    });
  }

  for (const gallery of all(document, ".gallery")) {
    stepping(gallery);
    playing(gallery);
  }
  all(document, ".chart").forEach(telling);
})();
